"""Memory that is let go goes back to the system at once."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3
LARGE = 4 * 2**20  # bytes


def return_large_blocks() -> None:
    """Asks glibc to give allocations of more than 4 MiB back when they are freed.

    By default it raises that limit up to 32 MiB as it goes and keeps what is freed: a streamed run would then hold
    several blocks' worth of memory that nobody uses. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LARGE)
        except (OSError, AttributeError):
            return  # another C library: it has no such setting
