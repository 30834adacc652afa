"""How large a checkpoint is, and how large it would be compressed."""

from __future__ import annotations

import zlib
from pathlib import Path

from autoprune.results.types import FileSize
from autoprune.storage.weight_files import weight_files

PIECES, PIECE = 48, 1 << 20  # of all files together, evenly spaced: what is compressed to know how well it goes
LEVEL = 6  # of zlib, its default


def file_size(directory: Path) -> FileSize:
    """Bytes of the weight files, and about what is left of them by zlib: of 48 MiB spread over all of them.

    Raises: ModelError as ``weight_files`` does.
    """
    files = [directory / name for name in sorted(weight_files(directory))]
    sizes = [path.stat().st_size for path in files]
    stored = sum(sizes)
    taken = left = 0
    for number in range(min(PIECES, -(-stored // PIECE))):
        data = _piece(files, sizes, number * max(PIECE, stored // PIECES))
        taken, left = taken + len(data), left + len(zlib.compress(data, LEVEL))
    return FileSize(stored, round(stored * min(1.0, left / taken)) if taken else stored)


def _piece(files: list[Path], sizes: list[int], at: int) -> bytes:
    """Up to a MiB from a place in the files laid end to end; what would reach into the next file is left out."""
    for path, size in zip(files, sizes, strict=True):
        if at < size:
            with path.open("rb") as handle:
                handle.seek(at)
                return handle.read(PIECE)
        at -= size
    return b""
