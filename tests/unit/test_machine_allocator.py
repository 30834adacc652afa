"""What the C library does with freed memory, asked of the library itself, in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from autoprune.machine import allocator as heap

PROGRAM = """
import ctypes
from autoprune.machine import allocator as heap

class Info(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]

libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.mallinfo2.restype, libc.free.argtypes = ctypes.c_void_p, Info, [ctypes.c_void_p]
MIB = 2**20

def mapped(size):
    before = libc.mallinfo2().hblkhd
    place = libc.malloc(size)
    grown = libc.mallinfo2().hblkhd - before
    libc.free(place)
    return grown >= size

libc.free(libc.malloc(30 * MIB))  # from now on glibc keeps what is smaller
assert not mapped(6 * MIB)
heap.return_large_blocks()
assert mapped(20 * MIB) and not mapped(2 * MIB)
size = libc.mallinfo2().arena
try:
    with heap.kept_for_reuse():
        assert not mapped(100 * MIB)
        assert libc.mallinfo2().arena > size + 90 * MIB, "freed and given back"
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert mapped(20 * MIB)
assert libc.mallinfo2().arena < size + 40 * MIB, "kept for longer than was asked"
with heap.restored():
    with heap.restored():
        heap.return_large_blocks()
    assert mapped(24 * MIB), "the outer run is not over"
assert not mapped(24 * MIB) and mapped(40 * MIB)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="about glibc, from 2.33 on"
)
def test_what_is_freed_is_given_back_or_kept() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    heap._glibc.cache_clear()
    try:
        heap.return_large_blocks()
        heap.return_what_is_free()
        with heap.kept_for_reuse():
            assert heap._glibc() is None
    finally:
        heap._glibc.cache_clear()
