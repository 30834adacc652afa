"""Temporary directories go with their process; those of killed ones with the next that is made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoprune.storage.scratch import YOUNG, scratch

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
    ended, killed, running = started(tmp_path), started(tmp_path), started(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    ended.communicate()
    assert len(list(tmp_path.iterdir())) == 2, "a process that ends leaves nothing"
    killed.kill()
    killed.communicate()
    other = tmp_path / "autoprune-other-kind"
    link = tmp_path / "autoprune-kind-link"
    other.mkdir()
    link.symlink_to(other)
    young = scratch("kind")
    assert len(list(tmp_path.glob("autoprune-kind-*"))) == 4, "what is young may be about to be held"
    long_ago = time.time() - 2 * YOUNG
    for directory in tmp_path.iterdir():
        os.utime(directory, (long_ago, long_ago))
    new = scratch("kind")
    left = set(tmp_path.glob("autoprune-kind-*")) - {young, new, link}
    assert [[file.name for file in directory.iterdir()] for directory in left] == [["file"]], "one is still running"
    assert young.is_dir() and other.is_dir() and link.is_symlink()
    running.communicate()
    assert not any(directory.exists() for directory in left)
