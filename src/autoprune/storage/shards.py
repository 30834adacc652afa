"""The shards of a pruned checkpoint: one for every block, and some for what lies outside the blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from autoprune.errors import OutputError
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.manifest import MANIFEST, TEMPLATES
from autoprune.storage.result import Workplace
from autoprune.storage.weight_files import INDEX, adapter_files

OUTSIDE_SHARD = 256 * 2**20  # bytes: tensors outside the blocks are copied in pieces of about this size
LARGEST_COMPANION = 100 * 2**20  # bytes; the largest tokenizers are of some 40 MB
NOT_COPIED = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


class CheckpointWriter:
    """Shards of a pruned checkpoint: first the tensors that belong to no block, then one shard for every block."""

    def __init__(self, workplace: Workplace, checkpoint: Checkpoint, outside: Sequence[str], blocks: int) -> None:
        self._workplace, self._checkpoint = workplace, checkpoint
        self._pieces = _pieces(checkpoint, outside)
        self._total = len(self._pieces) + blocks

    def write_block(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Writes one block's shard. Raises: OutputError if the disk is full or not writable."""
        self._workplace.save(self._shard(len(self._pieces) + index), tensors)

    def has_block(self, index: int) -> bool:
        """Whether the block's shard is there, whole."""
        return (self._workplace.path / self._shard(len(self._pieces) + index)).is_file()

    def read_block(self, index: int) -> dict[str, Tensor]:
        """A block that was written, by stored names."""
        return Checkpoint.one(self._workplace.path / self._shard(len(self._pieces) + index))

    def finish(self) -> None:
        """Copies the tensors outside the blocks, the model's other files, and writes the index."""
        for number, names in enumerate(self._pieces):
            self._workplace.copy(self._shard(number), self._checkpoint, names)
        written = Checkpoint.scan(
            self._workplace.path, [name for name in self._workplace.names() if name.endswith(".safetensors")]
        )
        if missing := set(self._checkpoint.shards) - set(written.shards):
            raise OutputError(
                f"{self._workplace.target}: tensor {sorted(missing)[0]} of the original was not written; nothing was"
                " put in place"
            )
        for path in companions(self._checkpoint.directory):
            self._workplace.copy_file(path.relative_to(self._checkpoint.directory).as_posix(), path)
        for name, text in self._checkpoint.rewritten.items():
            self._workplace.write(name, text)
        index = {
            "metadata": {"total_size": sum(written.sizes().values())},
            "weight_map": dict(sorted(written.shards.items())),
        }
        self._workplace.write(INDEX, json.dumps(index, indent=2) + "\n")

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self._total:05d}.safetensors"


def _pieces(checkpoint: Checkpoint, names: Sequence[str]) -> list[list[str]]:
    sizes = checkpoint.sizes()
    pieces: list[list[str]] = []
    room = 0
    for name in sorted(names):
        if not pieces or sizes[name] > room:
            pieces.append([])
            room = OUTSIDE_SHARD
        pieces[-1].append(name)
        room -= sizes[name]
    return pieces


def companions(source: Path) -> list[Path]:
    """The files of a model that are copied byte for byte: all but weights, what autoprune itself writes, hidden ones,
    and what is too large.
    """
    files = [path for path in _beside_weights(source) if path.name not in (MANIFEST, "README.md")]
    return [path for path in files if path.stat().st_size <= LARGEST_COMPANION]


def too_large(source: Path) -> list[str]:
    """The names of files that lie beside a model's weights and are no part of it, to judge by their size."""
    return [path.name for path in _beside_weights(source) if path.stat().st_size > LARGEST_COMPANION]


def _beside_weights(source: Path) -> list[Path]:
    found = sorted([*source.iterdir(), *(source / TEMPLATES).glob("*.jinja")])
    left = adapter_files(source)
    return [
        path
        for path in found
        if path.is_file() and path.name not in left and not (path.name[0] == "." or path.name.endswith(NOT_COPIED))
    ]
