"""Killed at any moment, a run goes on with --resume, and ends in the files of a run that nobody has killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from autoprune.run import prune as pruning
from autoprune.storage import files
from autoprune.storage import result as results
from autoprune.storage.files import DRAFT
from autoprune.storage.manifest import MANIFEST
from autoprune.storage.result import JOURNAL, STATE
from end_to_end.conftest import Run
from end_to_end.forks import Forks
from end_to_end.tiny import Answer, Texts, contents, flags, run_classic, save_tiny, tiny_model

BLOCKS = 4
BARBER = {
    "prune_method": "wanda",
    "prune_barber": True,
    "prune_granularity": "layer",
    "threshold": 0.1,
    "nsamples": 16,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some more blocks, so that there is something to be killed in."""
    return save_tiny(tmp_path_factory.mktemp("deep") / "model", tiny_model(num_hidden_layers=BLOCKS))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Starts processes."""
    server = Forks()
    yield server
    server.close()


def partial(out: Path) -> Path:
    """Where an unfinished run lies."""
    return out.parent / f".{out.name}.autoprune-partial"


def finished(out: Path) -> int:
    """Number of blocks that an unfinished run has finished."""
    return len(list(partial(out).glob(f"{JOURNAL}block-*.json")))


def killed_at(forks: Forks, given: list[str], log: Path, moment: float) -> bool:
    """Starts a run and kills it so many seconds later; False if it ended before."""
    pid = forks.start(given, log)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    status = forks.wait()
    assert status in (0, -signal.SIGKILL), log.read_text()
    return status != 0


def test_killed_again_and_again(forks: Forks, deep: Path, texts: Texts, tmp_path: Path) -> None:
    reference, out, log = tmp_path / "reference", tmp_path / "out", tmp_path / "log"
    began = time.monotonic()
    forks.start(flags(deep, texts, **BARBER, save_model=reference), log)
    assert forks.wait() == 0, log.read_text()
    took = time.monotonic() - began
    given = flags(deep, texts, **BARBER, save_model=out, resume=True)

    forks.start(given, log, die_in_save=4)  # each block is saved twice: as Wanda leaves it, and its shard
    assert forks.wait() == -signal.SIGKILL
    (draft,) = partial(out).glob(f"*{DRAFT}")
    assert draft.name.startswith(f"model-00003-of-0000{BLOCKS + 1}.safetensors.")
    assert finished(out) == 1
    rng, kills, ends = random.Random(0), 0, 0
    while kills < 4:
        if killed_at(forks, given, log, rng.uniform(0, took)):
            kills += 1
            continue
        assert contents(out) == contents(reference)
        shutil.rmtree(out)
        ends += 1
        assert ends < 20, "it is never killed in time"
    before = finished(out)
    forks.start(given, log)
    assert forks.wait() == 0, log.read_text()
    assert f"resuming: {before} of {BLOCKS} blocks are finished" in log.read_text() or before == 0
    assert contents(out) == contents(reference)
    assert not partial(out).exists()


class Killed(BaseException):
    """Ends a run as a signal would: nothing is tidied up."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Lets a run end at the n-th thing that it does to a file, half-way through if it writes one."""
    log: list[str] = []
    armed = [0]

    def halt(what: str, path: Path, *, halved: bool = False) -> None:
        log.append(f"{what} {path.name}")
        if len(log) == armed[0]:
            if halved:
                os.truncate(path, path.stat().st_size // 2)
            raise Killed

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda path, *rest, **named: (halt(name, path), real(path, *rest, **named))[1]
        )

    def after(owner: Any, name: str, place: int) -> None:
        real = getattr(owner, name)

        def write(*given: Any, **named: Any) -> Any:
            result = real(*given, **named)
            halt(name, Path(given[place]), halved=True)
            return result

        monkeypatch.setattr(owner, name, write)

    for name in ("replace", "rename", "unlink", "rmdir", "touch", "chmod"):
        before(Path, name)
    after(Path, "write_text", 0)
    after(results, "save_file", 1)
    after(results.shutil, "copyfile", 1)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow where many write
    monkeypatch.setattr(pruning, "stop", lambda _, workplace: workplace.leave())  # a lock ends with its process

    def arm(number: int) -> list[str]:
        log.clear()
        armed[0] = number
        return log

    return arm


def check_remains(out: Path) -> bool:
    """What has its final name is whole. Returns whether the result is, too."""
    place = partial(out)
    for path in [*place.glob("*"), *out.glob("*")]:
        if path.suffix == ".safetensors":
            load_file(path)
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    return (place / MANIFEST).is_file() and not (place / STATE).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_at_every_file(
    capsys: pytest.CaptureFixture[str], texts: Texts, tiny: Path, tmp_path: Path, kill_at: Any, overwrite: bool
) -> None:
    """Wherever it is stopped, what was at its place before is whole, and the next run makes the very same files."""
    model, old = shutil.copytree(tiny, tmp_path / "model"), tmp_path / "old"
    (model / "more.txt").write_text("a file that the earlier result does not have")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    assert (
        run_classic(capsys, flags(tiny, texts, prune_method="magnitude", sparsity_ratio=0.3, save_model=old)).status
        == 0
    )
    given = flags(model, texts, prune_method="magnitude", overwrite=overwrite)

    def prune(out: Path, number: int, *more: str) -> tuple[list[str], Answer | None]:
        done = kill_at(number)
        try:
            return done, run_classic(capsys, [*given, "--save_model", str(out), *more])
        except Killed:
            return list(done), None

    steps, _ = prune(tmp_path / "reference", 0)
    steps, expected = list(steps), contents(tmp_path / "reference")
    first = next(i for i, step in enumerate(steps) if step.startswith("chmod"))
    for number in range(
        first if overwrite else 1, len(steps) + 20
    ):  # before the files are put in place both are alike
        out = tmp_path / f"out-{number}"
        if overwrite:
            shutil.copytree(old, out)
        done, answer = prune(out, number)
        if answer is not None:
            break
        whole = check_remains(out)
        _, answer = prune(out, 0, "--resume")
        assert answer is not None
        assert answer.status == 0, f"{done[-1]}: {answer.err}"
        assert not (whole and "pruning" in answer.err.splitlines()), f"{done[-1]}: all was there, and was made again"
        assert contents(out) == expected, done[-1]
        assert not partial(out).exists() or not any(partial(out).iterdir()), done[-1]
        shutil.rmtree(out)
    assert number > first + 10, "hardly anything was done to files"
    assert answer is not None


def test_nothing_gets_its_name_before_it_is_on_the_disk(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power a file is there whole or not at all, and before any that was written later."""
    log: list[str] = []
    sync, replace, rename = files.sync, Path.replace, Path.rename
    for module in (files, results):
        monkeypatch.setattr(module, "sync", lambda path: (log.append(f"sync {path.name}"), sync(path))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (log.append(f"name {path.name}"), replace(path, to))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (log.append(f"publish {path.name}"), rename(path, to))[1])
    run(tiny, save_model=tmp_path / "out", prune_barber=True)
    place = partial(tmp_path / "out").name
    log = [w for w in log if "pruned-" not in w and w.rpartition(" ")[2] != "autoprune"]  # figures noted in the cache
    named = [i for i, what in enumerate(log) if what.startswith("name ") and "unfinished.json" not in what]
    assert len(named) > 10
    for i in named:
        assert log[i].endswith(DRAFT)
        assert log[i - 1 : i + 2] == [log[i].replace("name", "sync"), log[i], f"sync {place}"]
    assert log[-2:] == [f"publish {place}", f"sync {tmp_path.name}"]
    assert {f"sync {path.name}" for path in (tmp_path / "out").iterdir()} <= set(log[named[-1] :])


def test_a_second_run_is_refused_while_the_first_one_is_at_work(
    forks: Forks, deep: Path, texts: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    pid = forks.start(flags(deep, texts, **BARBER, save_model=out), log)
    while not (partial(out) / STATE).exists():
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    before = contents(partial(out))
    for more in ({}, {"resume": True}, {"overwrite": True}):
        answer = run_classic(capsys, flags(deep, texts, **BARBER, save_model=out, **more))
        assert answer.status == 2
        assert f"{out}: another autoprune run is writing there; wait for it" in answer.err
    assert contents(partial(out)) == before
    os.kill(pid, signal.SIGCONT)
    assert forks.wait() == 0, log.read_text()
    assert (out / MANIFEST).is_file()
