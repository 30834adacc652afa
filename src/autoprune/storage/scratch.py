"""Temporary directories for as long as the process runs; what a killed one left goes with the next that makes one."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import platform
import shutil
import tempfile
from pathlib import Path

PREFIX = "autoprune-scratch-"
OWNER = "owner"  # a file that says on which running system the directory is locked


def scratch(kind: str) -> Path:
    """A new directory, which goes when the process ends."""
    return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=_of_process(os.getpid())))


@functools.cache
def _of_process(process: int) -> Path:
    """The directory of all that this process makes; one file stays open for it."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or gone meanwhile
            _remove_left(left)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    with contextlib.suppress(OSError):  # what could not be locked has no owner's file, and is removed by nobody else
        fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_SH)  # held open until the end, however it comes
        (directory / OWNER).write_text(_system(), encoding="utf-8")
    atexit.register(_remove_own, directory, process)
    return directory


def _remove_own(directory: Path, process: int) -> None:
    """Unless this is a fork of the process."""
    if os.getpid() == process:
        shutil.rmtree(directory, ignore_errors=True)


def _remove_left(directory: Path) -> None:
    """Raises: OSError if its owner may still be running."""
    held = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (directory / OWNER).read_text(encoding="utf-8") == _system():
            shutil.rmtree(directory)
    finally:
        os.close(held)


def _system() -> str:
    """This machine since it was started, for a lock is seen no farther; where that has no name, the machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text(encoding="utf-8").strip() if boot.is_file() else platform.node()
