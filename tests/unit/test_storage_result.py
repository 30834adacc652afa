"""Results are made beside their place and put there whole; what others wrote is not touched."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from autoprune.errors import OutputError
from autoprune.storage import result as results
from autoprune.storage.manifest import MANIFEST, Manifest
from autoprune.storage.result import Workplace, check_target

ONE = {"w": torch.ones(2)}


def result(directory: Path, names: list[object]) -> Path:
    """A directory whose manifest claims these files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).write_text(json.dumps({"written": names}))
    return directory


def test_nothing_shows_before_it_is_published(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "deep/er/out", overwrite=False)
    place.begin(100)
    place.save("model.safetensors", ONE)
    place.write("notes.txt", "grüße")
    assert not place.target.exists()
    assert place.names() == ["model.safetensors", "notes.txt"]
    assert sorted(place.publish()) == [place.target / "model.safetensors", place.target / "notes.txt"]
    assert sorted(path.name for path in place.target.iterdir()) == ["model.safetensors", "notes.txt"]
    assert [path.name for path in place.target.parent.iterdir()] == ["out"]
    assert (place.target / "notes.txt").read_text(encoding="utf-8") == "grüße"
    assert torch.equal(load_file(place.target / "model.safetensors")["w"], ONE["w"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_can_be_read_by_those_who_may_read_the_users_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    place = Workplace(tmp_path / "out", overwrite=False)
    place.begin(0)
    place.save("model.safetensors", ONE)
    place.publish()
    os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


def test_abandoning_leaves_nothing(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "out", overwrite=False)
    place.begin(0)
    place.save("model.safetensors", ONE)
    place.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    first, second = Workplace(tmp_path / "out", overwrite=False), Workplace(tmp_path / "out", overwrite=True)
    first.begin(0)
    first.save("model.safetensors", ONE)
    with pytest.raises(OutputError, match="another autoprune run is writing there"):
        second.begin(0)
    assert first.names() == ["model.safetensors"], "the second run tidied up under the first"
    first.publish()
    with pytest.raises(OutputError, match="not empty"):
        Workplace(tmp_path / "out", overwrite=False).begin(0)


def test_one_run_after_another(tmp_path: Path) -> None:
    first, second = Workplace(tmp_path / "out", overwrite=False), Workplace(tmp_path / "out", overwrite=False)
    first.begin(0)
    first.abandon()
    second.begin(0)
    second.abandon()


def test_a_target_that_was_filled_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "out", overwrite=False)
    place.begin(0)
    place.write("notes.txt", "new")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("old")
    with pytest.raises(OutputError, match="not empty"):
        place.publish()
    assert (tmp_path / "out/notes.txt").read_text() == "old"
    place.abandon()


def test_a_file_of_the_user_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = result(tmp_path / "out", [])
    place = Workplace(out, overwrite=True)
    place.begin(0)
    place.write("notes.txt", "new")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt there was not written by autoprune"):
        place.publish()
    assert (out / "notes.txt").read_text() == "mine"
    place.abandon()


def new_result(out: Path) -> Workplace:
    """A workplace for ``out`` in which all has been written and nothing been put in place."""
    place = Workplace(out, overwrite=True)
    place.begin(0)
    place.write("a.txt", "new")
    place.write(MANIFEST, json.dumps({"written": ["a.txt"]}))
    return place


@pytest.mark.parametrize("stop", range(1, 12))
@pytest.mark.parametrize("inside", [False, True], ids=["replaced", "mounted"])
def test_a_stop_at_any_step_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, inside: bool
) -> None:
    """Old result, none, or new one, but never some files of each under one manifest; and a second try completes it.
    The user's file stays.
    """
    out = result(tmp_path / "out", ["a.txt", "z.txt"])
    (out / "z.txt").write_text("old")
    (out / "a.txt").write_text("old")
    (out / "mine.txt").write_text("mine")
    monkeypatch.setattr(os.path, "ismount", lambda path: inside and Path(path) == out)
    place, steps = new_result(out), 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with contextlib.suppress(KeyboardInterrupt):
            place.publish()
    held = {path.name: path.read_text() for path in out.glob("*.txt")} if out.is_dir() else {}
    if (out / MANIFEST).is_file():
        written = json.loads((out / MANIFEST).read_text())["written"]
        assert {held[name] for name in written if name in held} <= ({"old"} if "z.txt" in written else {"new"})
        assert inside or set(written) <= set(held), (
            "only where a directory can't be replaced may an old result lose files first"
        )
    place.leave()
    again = Workplace(out, overwrite=True, resume=True)
    again.tidy()
    if again.whole:
        again.begin(0)
        again.publish()
    assert {path.name: path.read_text() for path in out.glob("*.txt")} == {"a.txt": "new", "mine.txt": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", MANIFEST, "mine.txt"]


def test_the_current_directory_can_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new_result(Path()).publish()
    assert (
        sorted(path.name for path in Path().iterdir())
        == ["a.txt", MANIFEST]
        == sorted(path.name for path in tmp_path.iterdir())
    )


@pytest.mark.parametrize("need", [10**18, 10**24])
def test_room_is_asked_for_at_the_start(tmp_path: Path, need: int) -> None:
    with pytest.raises(OutputError, match=r"the result needs [\d,.]+ MiB, but only [\d,.]+ MiB are free"):
        Workplace(tmp_path / "out", overwrite=False).begin(need)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_by_either_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    place = Workplace(tmp_path / "out", overwrite=False)
    place.begin(0)
    monkeypatch.setattr(results, "save_file", full)
    with pytest.raises(
        OutputError, match=r"out: the disk is full; what was there before is unchanged\. Free some space"
    ):
        place.save("model.safetensors", ONE)
    assert place.made() == []
    place.abandon()


def test_written_files_never_leave_the_directory(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "out/sub").mkdir(parents=True)
    (tmp_path / "out/sub/precious.txt").write_text("mine")
    names: list[object] = [
        "../precious.txt",
        str(tmp_path / "precious.txt"),
        "sub/precious.txt",
        "sub",
        "..",
        ".",
        "",
        "gone.txt",
        "./sub/../ours.txt",
    ]
    out = result(tmp_path / "out", [*names, "ours.txt"])
    (out / "ours.txt").write_text("ours")
    assert Manifest.read(out).files == [out / "ours.txt", out / MANIFEST]
    Manifest.read(out).delete()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")) == [
        "out/sub/precious.txt",
        "precious.txt",
    ]


def test_deleting_removes_the_directory_if_nothing_else_is_in_it(tmp_path: Path) -> None:
    out = result(tmp_path / "out", ["a.txt"])
    (out / "a.txt").touch()
    Manifest.read(out).delete()
    assert list(tmp_path.iterdir()) == []


def test_targets(tmp_path: Path) -> None:
    check_target(tmp_path / "new", overwrite=False)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", overwrite=False)
    out = result(tmp_path / "out", [])
    check_target(out, overwrite=True)
    with pytest.raises(OutputError, match="replace an earlier autoprune result with --overwrite"):
        check_target(out, overwrite=False)
    (out / MANIFEST).rename(out / "other.json")
    with pytest.raises(OutputError, match=r"was not written by autoprune \(no autoprune\.json\)"):
        check_target(out, overwrite=True)
