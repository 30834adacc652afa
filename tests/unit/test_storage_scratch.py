"""Temporary directories go with their process; those of killed ones with the next that is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.storage.scratch import OWNER, PREFIX, _of_process, scratch

PROGRAM = """
import sys
from autoprune.storage.scratch import scratch
(scratch("kind") / "file").touch()
print("made", flush=True)
sys.stdin.read()
"""


def started(place: Path) -> subprocess.Popen[str]:
    """A process that has made a directory and waits."""
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None and running.stdout.readline() == "made\n"
    return running


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended, running, killed = started(tmp_path), started(tmp_path), started(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    ended.communicate()
    assert len(list(tmp_path.iterdir())) == 2, "a process that ends leaves nothing"
    before = set(tmp_path.iterdir())
    killed.kill()
    killed.communicate()
    other, link = tmp_path / "autoprune-other-kind", tmp_path / f"{PREFIX}link"
    elsewhere, unlocked = tmp_path / f"{PREFIX}elsewhere", tmp_path / f"{PREFIX}unlocked"
    for directory in (other, elsewhere, unlocked):
        directory.mkdir()
    link.symlink_to(other)
    (elsewhere / OWNER).write_text("another machine")
    last = started(tmp_path)
    assert len(before & set(tmp_path.iterdir())) == 1, "one is still running"
    assert all(path.is_dir() for path in (other, link, elsewhere, unlocked)), "whose owners may be running"
    assert link.is_symlink()
    for process in (running, last):
        process.communicate()
    assert set(tmp_path.iterdir()) == {other, link, elsewhere, unlocked}


def test_one_process_holds_one_file_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _of_process.cache_clear()
    first, second = scratch("kind"), scratch("other")
    assert first != second and first.parent == second.parent
    assert first.name.startswith("kind-") and first.parent.parent == tmp_path
    _of_process.cache_clear()
