"""Killed at any moment, a run goes on with --resume, and ends in the files of a run that nobody has killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoprune import pruning
from autoprune.storage import writer
from autoprune.storage.writer import DRAFT, JOURNAL
from end_to_end.forks import Forks
from end_to_end.tiny import Texts, contents, flags, run_classic, save_tiny, tiny_model

BLOCKS = 4
BARBER = {"prune_method": "wanda", "prune_barber": True, "prune_granularity": "layer", "threshold": 0.1, "nsamples": 16, "batch_size": 2}


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
    assert [path.name for path in partial(out).glob(f"*{DRAFT}")] == [f"model-00003-of-0000{BLOCKS + 1}.safetensors{DRAFT}"]
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
        monkeypatch.setattr(owner, name, lambda path, *rest, **named: (halt(name, path), real(path, *rest, **named))[1])

    def after(owner: Any, name: str, place: int) -> None:
        real = getattr(owner, name)

        def write(*given: Any, **named: Any) -> Any:
            result = real(*given, **named)
            halt(name, given[place], halved=True)
            return result

        monkeypatch.setattr(owner, name, write)

    for name in ("replace", "rename", "unlink", "rmdir", "touch", "chmod"):
        before(Path, name)
    after(Path, "write_text", 0)
    after(writer, "save_file", 1)
    after(writer.shutil, "copyfile", 1)
    monkeypatch.setattr(pruning, "_stop", lambda _, workplace: workplace.leave())  # a lock ends with its process

    def arm(number: int) -> list[str]:
        log.clear()
        armed[0] = number
        return log

    return arm


@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_at_every_file(capsys: pytest.CaptureFixture[str], texts: Texts, tiny: Path, tmp_path: Path, kill_at: Any, overwrite: bool) -> None:
    """Wherever it is stopped, what was at its place before is whole, and the next run makes the very same files."""
    old = flags(tiny, texts, prune_method="magnitude", sparsity_ratio=0.3)
    given = flags(tiny, texts, prune_method="magnitude", overwrite=overwrite)
    reference = tmp_path / "reference"
    assert run_classic(capsys, [*given, "--save_model", str(reference)]).status == 0
    expected, number, steps = contents(reference), 0, ["-"]
    while steps:
        number += 1
        out = tmp_path / f"out-{number}"
        kill_at(0)
        if overwrite:
            assert run_classic(capsys, [*old, "--save_model", str(out)]).status == 0
        steps = kill_at(number)
        with contextlib.suppress(Killed):
            run_classic(capsys, [*given, "--save_model", str(out)])
            steps = []
        stopped = kill_at(0)
        answer = run_classic(capsys, [*given, "--save_model", str(out), "--resume"])
        assert answer.status == 0, f"{stopped}: {answer.err}"
        assert contents(out) == expected, stopped
        assert not partial(out).exists() or not any(partial(out).iterdir()), stopped
        shutil.rmtree(out)
    assert number > 30, "hardly anything was done to files"
