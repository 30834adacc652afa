"""What becomes of memory that is let go: back to the system at once, or kept where it is needed again at once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGE = 4 * 2**20  # bytes
MAPPINGS = 65536  # glibc's own limit
ENDLESS = 2**31 - 1
OWN = 32 * 2**20  # bytes: where glibc's own adjustment of the limit ends, which a first setting switches off


class _Limits:
    """What was changed, and how many runs are under way that want it as it was."""

    changed = False
    runs = 0


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc: others have neither the settings nor the need."""
    try:
        library = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def return_large_blocks() -> None:
    """Asks glibc to give allocations of more than 4 MiB back when they are freed.

    By default it raises that limit up to 32 MiB as it goes and keeps what is freed: a streamed run would then hold
    several blocks' worth of memory that nobody uses. Elsewhere than on glibc nothing is done.
    """
    if library := _glibc():
        library.mallopt(M_MMAP_THRESHOLD, LARGE)
        _Limits.changed = True


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Behind the outermost of them, glibc keeps what is freed as it would after large allocations without us.

    Not to the letter: what it had set can't be asked, and its own adjustment of the limits is over.
    """
    _Limits.runs += 1
    try:
        yield
    finally:
        _Limits.runs -= 1
        if (library := _glibc()) and _Limits.changed and not _Limits.runs:
            library.mallopt(M_MMAP_THRESHOLD, OWN)
            library.mallopt(M_TRIM_THRESHOLD, 2 * OWN)
            _Limits.changed = False


def return_what_is_free() -> None:
    """Gives the pages of smaller allocations back that are free now; glibc keeps them otherwise, some 100 MB in
    a run.
    """
    if library := _glibc():
        library.malloc_trim(0)


@contextlib.contextmanager
def kept_for_reuse() -> Iterator[None]:
    """While it lasts, memory that is freed stays with the process; afterwards what is free then goes back.

    For work in which large tensors of the same few sizes follow one another: each would be given new pages by the
    system, which takes as long as an addition on them. glibc's own adjustment of its limits ends with the first use.
    """
    library = _glibc()
    if library:
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, ENDLESS)
    try:
        yield
    finally:
        if library:
            library.mallopt(M_MMAP_MAX, MAPPINGS)
            library.mallopt(M_TRIM_THRESHOLD, 8 * LARGE)
            library.malloc_trim(0)
            _Limits.changed = True
