"""Files written whole or not at all, and their fingerprints: the one place for both. Imports no torch."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from autoprune.errors import OutputError

DRAFT = ".writing"
LONGEST_NAME = 255  # bytes that file systems allow in the name of a file


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A new file in the directory of ``path``, which becomes ``path`` when it is written and on the disk.

    Its name is its own, so that two processes that write the same file do not mix: the later one's stays.
    Raises: OSError as writing does; then the draft is removed and ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f".{secrets.token_hex(4)}{DRAFT}"
    stem = path.name if len(os.fsencode(path.name + ending)) <= LONGEST_NAME else ""
    made = path.with_name(stem + ending)
    try:
        yield made
        sync(made)
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all. Raises: OSError as writing does."""
    with draft(path) as made:
        made.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Returns when a file, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turns the system's errors while writing into one that names the place and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number == errno.ENOSPC or "No space left" in str(error) or "os error 28" in str(error):
            cause, remedy = "the disk is full", "Free some space or choose another place"
        elif number == errno.ENAMETOOLONG:
            cause, remedy = "a name there would be longer than the file system allows", "Choose a shorter name"
        else:
            cause, remedy = f"can't write there ({error})", "Free some space or choose another place"
        raise OutputError(f"{target}: {cause}; what was there before is unchanged. {remedy}") from error
