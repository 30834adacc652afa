"""Temporary directories for as long as the process runs; what a killed one left goes with the next of their kind."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

YOUNG = 60.0  # seconds: a directory may be there for a moment before its owner holds it


def scratch(kind: str) -> Path:
    """A new directory, which goes when the process ends."""
    for left in Path(tempfile.gettempdir()).glob(f"autoprune-{kind}-*"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or gone meanwhile
            _remove_left(left)
    directory = Path(tempfile.mkdtemp(prefix=f"autoprune-{kind}-"))
    with contextlib.suppress(OSError):  # where nothing can be locked nothing is removed either
        fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_SH)  # held open until the end, however it comes
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _remove_left(directory: Path) -> None:
    """Raises: OSError if its owner is still running, or it is not this user's."""
    held = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(held)
        if state.st_uid == os.getuid() and time.time() - state.st_mtime > YOUNG:
            shutil.rmtree(directory)
    finally:
        os.close(held)
