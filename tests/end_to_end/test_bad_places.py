"""Places where results can't go: nothing that is there is lost, and nothing half-made stays behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.errors import OutputError
from autoprune.storage import files
from autoprune.storage import result as results
from end_to_end.conftest import Refuse, Run, refused
from end_to_end.tiny import Texts, contents, flags, run_classic

Spoil = Callable[..., Any]
USAGE = namedtuple("USAGE", "total used free")


def test_directory_that_is_not_empty(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("three years of work")
    refuse(tiny, f"{tmp_path / 'out'}", "not empty", "--overwrite")


def test_directory_of_somebody_else_is_refused_even_with_overwrite(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "out")
    refuse(tiny, f"{tmp_path / 'out'}", "not written by autoprune", "choose another", overwrite=True)


@pytest.mark.parametrize("manifest", ["{", "[]", '"written"', "{}", '{"written": null}', '{"written": [1]}'])
def test_manifest_that_says_nothing(refuse: Refuse, tiny: Path, tmp_path: Path, manifest: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/autoprune.json").write_text(manifest)
    refuse(tiny, "autoprune.json does not say what autoprune wrote there", "choose another", overwrite=True)


def test_file_in_the_way(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    refuse(tiny, f"{tmp_path / 'out'}: a file of that name exists")
    refuse(tiny, f"--save_ppl {tmp_path / 'out'}", "is a file", save_model=None, save_ppl=tmp_path / "out")
    refuse(tiny, f"--save_ppl {tmp_path / 'out/ppl'}", "is a file", save_model=None, save_ppl=tmp_path / "out/ppl")
    refuse(tiny, f"{tmp_path / 'out/model'}", save_model=tmp_path / "out/model", save_ppl=None)


def test_what_is_no_directory_is_never_replaced(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    """A device, a pipe, a socket, or a link to nothing: nothing else of that name may come to an end either."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, kind in (("pipe", "device, pipe or socket"), ("link", "link to nothing")):
        for more in ({}, {"overwrite": True}, {"resume": True}):
            refuse(tiny, f"a {kind} of that name exists", save_model=tmp_path / name, **more)
        refuse(tiny, f"{tmp_path / name} is a file", save_model=None, save_ppl=tmp_path / name)
        with pytest.raises(OutputError, match=f"a {kind} of that name exists"):
            autoprune.shrink(tiny, tmp_path / name, blocks=1)
        with pytest.raises(OutputError, match=f"a {kind} of that name exists"):
            autoprune.rotate(tiny, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    # A link to a result that was being replaced when the run was stopped is the way back to it.
    (tmp_path / ".gone.autoprune-old").mkdir()
    results.check_target(tmp_path / "link", overwrite=True)


def test_overwriting_replaces_what_autoprune_wrote_and_nothing_else(run: Run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny, save_model=out)
    (out / "thesis.txt").write_text("three years of work")
    (out / "notes").mkdir()
    (out / "notes/autoprune.json").write_text("mine")
    old = json.loads((out / "autoprune.json").read_text())
    (out / "left_by_an_older_version.json").write_text("{}")
    (out / "autoprune.json").write_text(
        json.dumps({**old, "written": [*old["written"], "left_by_an_older_version.json"]})
    )
    run(tiny, save_model=out, prune_method="magnitude", overwrite=True)
    run(tiny, save_model=tmp_path / "fresh", prune_method="magnitude")
    assert contents(out) == {
        **contents(tmp_path / "fresh"),
        "thesis.txt": b"three years of work",
        "notes/autoprune.json": b"mine",
    }


def test_overwriting_never_takes_a_file_of_the_user_that_has_a_name_of_ours(
    refuse: Refuse, run: Run, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(tiny, save_model=out)
    manifest = json.loads((out / "autoprune.json").read_text())
    for name in ("tokenizer.json", "README.md", "model.safetensors"):
        manifest["written"] = [written for written in manifest["written"] if written != name]
        (out / "autoprune.json").write_text(json.dumps(manifest))
        (out / name).write_text("mine")
        refuse(tiny, f"{name} there was not written by autoprune", "move it away", overwrite=True)
        (out / name).unlink()


def test_empty_directory_is_welcome(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(tiny, save_model=tmp_path / "out")
    assert (tmp_path / "out/autoprune.json").is_file()


def test_link_to_a_directory_is_followed(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk", target_is_directory=True)
    run(tiny, save_model=tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk/autoprune.json").is_file()


@pytest.mark.parametrize("inside", ["", "pruned", "a/b"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_input_is_never_written_to(
    refuse: Refuse, run: Run, tiny: Path, tmp_path: Path, inside: str, overwrite: bool
) -> None:
    """Not even where the input is itself a result of autoprune, which --overwrite would allow to replace."""
    model = tmp_path / "model"
    run(tiny, save_model=model)
    (tmp_path / "link").symlink_to(model, target_is_directory=True)
    for word in (model, tmp_path / "link", tmp_path / "x/../model"):
        refuse(model, "choose another", save_model=word / inside, overwrite=overwrite)
    pattern = {"prune_barber": True, "pruned_model": model, "sparsity_ratio": None}
    refuse(tiny, "--pruned_model", "must stay as it is", save_model=model / "rebuilt", overwrite=overwrite, **pattern)
    if overwrite:
        refuse(
            model,
            f"lies in the directory of the model {model}",
            "must stay as it is",
            save_model=model,
            overwrite=True,
        )
        refuse(tiny, f"lies in the directory of --pruned_model {model}", save_model=model, overwrite=True, **pattern)


def test_shipped_model_is_never_written_to(refuse: Refuse) -> None:
    from autoprune.storage.locate import DEMO

    refuse("demo", "lies in the directory of the model demo", save_model=DEMO / "pruned")


def test_reports_beside_and_inside_the_checkpoint(run: Run, tiny: Path, tmp_path: Path) -> None:
    run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "out/ppl")
    assert (tmp_path / "out/ppl/log_wanda_50pct.txt").is_file()
    assert (tmp_path / "out/autoprune.json").is_file()


def test_no_room_on_the_disk(refuse: Refuse, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.shutil, "disk_usage", lambda path: USAGE(10**9, 10**9 - 1000, 1000))
    message = refuse(tiny, f"{tmp_path / 'out'}: the result needs", "only 0.0 MiB are free")
    assert "checking weights" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Lets a function of the writer fail at its n-th call."""

    def arm(module: Any, name: str, error: BaseException, at: int) -> None:
        real, calls = getattr(module, name), [0]

        def failing(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise error
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, failing)

    return arm


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("name", "at"), [("save_file", 1), ("save_file", 2), ("sync", 1), ("sync", 3), ("sync", 5)])
def test_disk_that_fills_up(
    capsys: pytest.CaptureFixture[str], texts: Texts, tiny: Path, tmp_path: Path, spoil: Spoil, name: str, at: int
) -> None:
    """Whatever was there before is there as it was; of the new result only what can be resumed is, beside it."""
    out = tmp_path / "out"
    assert run_classic(capsys, flags(tiny, texts, save_model=out)).status == 0
    before = contents(out)
    spoil(files if name == "sync" else results, name, FULL, at)
    answer = run_classic(capsys, flags(tiny, texts, save_model=out, prune_method="magnitude", overwrite=True))
    assert answer.status == 2
    assert "Traceback" not in answer.err
    assert f"{out}: the disk is full; what was there before is unchanged" in answer.err
    assert contents(out) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"out", ".out.autoprune-partial"}


def test_copy_that_fails(
    refuse: Refuse, capsys: pytest.CaptureFixture[str], texts: Texts, tiny: Path, tmp_path: Path, spoil: Spoil
) -> None:
    spoil(results.shutil, "copyfile", PermissionError(errno.EACCES, "Permission denied"), 2)
    answer = run_classic(capsys, flags(tiny, texts, save_model=tmp_path / "out"))
    assert answer.status == 2
    assert f"{tmp_path / 'out'}: can't write there" in answer.err
    assert not (tmp_path / "out").exists()


def test_interruption_leaves_no_result(
    capsys: pytest.CaptureFixture[str], texts: Texts, tiny: Path, tmp_path: Path, spoil: Spoil
) -> None:
    spoil(results, "save_file", KeyboardInterrupt(), 2)
    answer = run_classic(capsys, flags(tiny, texts, save_model=tmp_path / "out"))
    assert (answer.status, answer.err.splitlines()[-1]) == (130, "interrupted")
    assert not (tmp_path / "out").exists()


def test_place_where_another_run_is_at_work(refuse: Refuse, run: Run, tiny: Path, tmp_path: Path) -> None:
    other = results.Workplace(tmp_path / "out", overwrite=False)
    other.begin(0)
    (other.path / "model-00001.safetensors").write_text("half")
    refuse(tiny, f"{tmp_path / 'out'}: another autoprune run is writing there", "wait for it")
    other.abandon()
    run(tiny, save_model=tmp_path / "out")


def test_remains_of_a_run_that_was_killed_are_cleared_away(run: Run, tiny: Path, tmp_path: Path) -> None:
    killed = tmp_path / ".out.autoprune-partial"
    (killed / "folder").mkdir(parents=True)
    (killed / "model-00009-of-00009.safetensors").write_text("half")
    run(tiny, save_model=tmp_path / "out")
    assert not killed.exists()
    assert not (tmp_path / "out/folder").exists()
    assert not (tmp_path / "out/model-00009-of-00009.safetensors").exists()


def test_refusals_do_not_depend_on_the_order_of_flags(
    capsys: pytest.CaptureFixture[str], texts: Texts, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    words = flags(tiny, texts, save_model=tmp_path / "out", no_dense=None)
    pairs = [words[i : i + 2] for i in range(0, len(words), 2)]
    refused(run_classic(capsys, [word for pair in reversed(pairs) for word in pair]), "not empty")


@pytest.mark.parametrize("length", [240, 255])
def test_names_near_the_limit_of_the_file_system(run: Run, tiny: Path, tmp_path: Path, length: int) -> None:
    out = tmp_path / ("o" * length)
    run(tiny, save_model=out)
    run(tiny, save_model=out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert (out / "autoprune.json").is_file()


def test_names_over_the_limit_are_called_so(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    refuse(tiny, "--save_model", "no name of a directory", save_model=tmp_path / ("o" * 256))
    refuse("m" * 300, "--model", "is no name: too long for a file")
    refuse(tiny, "--calibration_data", "is no name: too long for a file", calibration_data="a word " * 200)


@pytest.mark.parametrize("place", ["/dev/full", "closed"])
def test_standard_output_that_takes_nothing(place: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "autoprune.cli.main", "reproduce"]
    if place == "closed":
        end, out = os.pipe()
        os.close(end)
    else:
        out = os.open(place, os.O_WRONLY)
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    os.close(out)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if place == "closed":
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    else:
        assert done.returncode == 2
        assert "standard output can't be written (No space left on device)" in done.stderr
