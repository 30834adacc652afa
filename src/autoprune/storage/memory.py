"""Memory that is let go goes back to the system at once."""

from __future__ import annotations

import ctypes
import functools
import sys

M_MMAP_THRESHOLD = -3
LARGE = 4 * 2**20  # bytes


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc: others have neither the setting nor the need."""
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


def return_what_is_free() -> None:
    """Gives the pages of smaller allocations back that are free now; glibc keeps them otherwise, some 100 MB in a run."""
    if library := _glibc():
        library.malloc_trim(0)
