"""Tensors of a sharded safetensors checkpoint by name, read when they are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.storage.weight_files import (
    NAMED,
    adapter_files,
    named_weights,
    read_json,
    refuse_adapter,
    tensors_in,
    weight_files,
)

CHUNK = 4 * 2**20  # bytes copied at a time


@dataclass(frozen=True)
class Checkpoint:
    """A model directory whose shards have been opened and found whole. ``shards`` maps tensor names to file names."""

    directory: Path
    shards: dict[str, str]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Reads the headers of all shards.

        Raises: ModelError naming the file that is missing, truncated or of the wrong kind.
        """
        if not directory.is_dir() or not os.access(directory, os.R_OK | os.X_OK):
            raise ModelError(f"{directory} is no directory that can be read; check the path and its permissions")
        refuse_adapter(directory)
        if not (directory / "config.json").is_file():
            raise ModelError(
                f"{directory}: no config.json here, so this is no Hugging Face checkpoint; give the directory that"
                " holds config.json and the weights"
            )
        shards = {tensor: name for name, tensors in weight_files(directory).items() for tensor in tensors}
        if not shards:
            raise ModelError(f"{directory}: the weight files hold no tensors; fetch the checkpoint again")
        return cls(directory, shards)

    @classmethod
    def scan(cls, directory: Path, names: Iterable[str]) -> Checkpoint:
        """The tensors of some safetensors files in a directory, index or not."""
        return cls(directory, {tensor: name for name in names for tensor in tensors_in(directory / name)})

    @classmethod
    def one(cls, path: Path) -> dict[str, Tensor]:
        """All tensors of one safetensors file. Raises: ModelError if it can't be read."""
        found = cls.scan(path.parent, [path.name])
        return found.read(found.shards)

    @property
    def note(self) -> str:
        """What its reader should know of how the weights came to be what they are; usually nothing."""
        if adapter := adapter_files(self.directory):
            return f"the adapter beside the weights ({', '.join(adapter)}) is not part of the model and left out"
        return ""

    @property
    def rewritten(self) -> dict[str, str]:
        """Text files that a checkpoint made from this one has in another form, by name."""
        if named_weights(self.directory) is None:
            return {}
        config = read_json(self.directory / "config.json")  # its weights will have the usual names
        return {"config.json": json.dumps({k: v for k, v in config.items() if k != NAMED}, indent=2) + "\n"}

    @property
    def files(self) -> list[Path]:
        """The shards, in the order of their names."""
        return [self.directory / name for name in sorted(set(self.shards.values()))]

    @property
    def bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(path.stat().st_size for path in self.files)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors as they are stored, on the CPU, in memory of their own.

        Raises: ModelError if a shard can no longer be read.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.shards[name], []).append(name)
        tensors: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            try:
                with safe_open(self.directory / file, framework="pt") as shard:
                    for name in wanted:
                        tensors[name] = shard.get_tensor(name).clone()
            except (SafetensorError, OSError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "unable to open" not in str(error):
                    raise  # of torch, which says so too where memory runs out
                raise ModelError(f"{self.directory / file} can't be read: {error}") from error
        return tensors

    def copy(self, names: Iterable[str], path: Path) -> None:
        """Writes the named tensors into a safetensors file of their own, byte for byte and never a whole tensor in
        memory.
        """
        found, header, end = self._headers(), dict[str, Any](), 0
        ordered = sorted(names, key=lambda name: (self.shards[name], found[name]["data_offsets"]))
        for name in ordered:
            start, stop = found[name]["data_offsets"]
            header[name] = found[name] | {"data_offsets": [end, end + stop - start]}
            end += stop - start
        text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in ordered:
                self._pour(name, found[name]["data_offsets"], out)

    def _pour(self, name: str, where: tuple[int, int], out: BinaryIO) -> None:
        with (self.directory / self.shards[name]).open("rb") as shard:
            start, stop = where
            shard.seek(8 + int.from_bytes(shard.read(8), "little") + start)
            for position in range(start, stop, CHUNK):
                out.write(shard.read(min(CHUNK, stop - position)))

    def dtypes(self) -> dict[str, str]:
        """Every tensor's dtype in the file format's words (F32, BF16, …)."""
        return {name: entry["dtype"] for name, entry in self._headers().items()}

    def sizes(self) -> dict[str, int]:
        """Every tensor's size in bytes."""
        return {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in self._headers().items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {name: tuple(entry["shape"]) for name, entry in self._headers().items()}

    def _headers(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in self.files:
            with path.open(
                "rb"
            ) as handle:  # the header alone, which safe_open does not show: 8 bytes of length, then JSON
                found |= json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        found.pop("__metadata__", None)
        return found
