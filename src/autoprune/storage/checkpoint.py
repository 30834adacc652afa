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

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CHUNK = 4 * 2**20  # bytes copied at a time
CONVERSION = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer;"
    " AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(NEW_DIR);"
    " AutoTokenizer.from_pretrained(MODEL).save_pretrained(NEW_DIR)"
)


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
        shards: dict[str, str] = {}
        for name in _shard_names(directory):
            for tensor in read_shard_names(directory / name):
                shards[tensor] = name
        _check_index(directory, shards)
        if not shards:
            raise ModelError(f"{directory}: the weight files hold no tensors; fetch the checkpoint again")
        return cls(directory, shards)

    @classmethod
    def scan(cls, directory: Path, names: Iterable[str]) -> Checkpoint:
        """The tensors of some safetensors files in a directory, index or not."""
        return cls(directory, {tensor: name for name in names for tensor in read_shard_names(directory / name)})

    @classmethod
    def one(cls, path: Path) -> dict[str, Tensor]:
        """All tensors of one safetensors file. Raises: ModelError if it can't be read."""
        found = cls.scan(path.parent, [path.name])
        return found.read(found.shards)

    @property
    def note(self) -> str:
        """What its reader should know of how the weights came to be what they are; usually nothing."""
        return ""

    @property
    def rewritten(self) -> dict[str, str]:
        """Text files that a checkpoint made from this one has in another form, by name."""
        return {}

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
            except (SafetensorError, OSError) as error:
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


def refuse_adapter(directory: Path) -> None:
    """Raises: ModelError if the directory holds an adapter to a model and no model."""
    if not (directory / "adapter_config.json").is_file() or (directory / "config.json").is_file():
        return
    try:
        base = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "BASE"
    raise ModelError(
        f"{directory} holds a PEFT adapter (adapter_config.json), which is no model of its own. Merge it once, in"
        " Python: from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer;"
        f" AutoPeftModelForCausalLM.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained(NEW_DIR);"
        f" AutoTokenizer.from_pretrained({base!r}).save_pretrained(NEW_DIR). Then give NEW_DIR"
    )


def has_weights(directory: Path) -> bool:
    """Whether any weights are here, readable or not; without them a directory only describes a model."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.bin")) or (directory / INDEX).is_file()


def _shard_names(directory: Path) -> list[str]:
    if _is_sharded(directory):
        names = sorted(set(_read_index(directory).values()))
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise ModelError(
                f"{directory}: shard {missing[0]} is missing ({len(missing)} of {len(names)}); the download was not"
                " finished, fetch it again"
            )
        return names
    if (directory / SINGLE).is_file():
        return [SINGLE]
    if any(directory.glob("*.bin")):
        raise ModelError(
            f"{directory} holds weights as .bin files: pickles, which can run code and which autoprune does not open."
            f" Convert them once, in Python: {CONVERSION}. Then give NEW_DIR"
        )
    raise ModelError(
        f"{directory}: neither {SINGLE} nor {INDEX} is here, so there are no weights to read. From the hub only"
        f" safetensors are fetched; a model that has only .bin files there is converted once, in Python: {CONVERSION}"
    )


def read_shard_names(path: Path) -> list[str]:
    """The tensors of one shard. Raises: ModelError if it is truncated or no safetensors file."""
    try:
        with safe_open(path, framework="pt") as shard:
            return list(shard.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or no safetensors file ({error}); fetch it again") from error


def _is_sharded(directory: Path) -> bool:
    """Where both kinds are there, transformers reads the single file, and so do we."""
    return (directory / INDEX).is_file() and not (directory / SINGLE).is_file()


def _read_index(directory: Path) -> dict[str, str]:
    try:
        return dict(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(
            f"{directory / INDEX} is no index of a sharded checkpoint ({error}); fetch it again"
        ) from error


def _check_index(directory: Path, shards: dict[str, str]) -> None:
    if not _is_sharded(directory):
        return
    index = _read_index(directory)
    wrong = [name for name, file in index.items() if shards.get(name) != file]
    if wrong:
        raise ModelError(
            f"{directory / INDEX} says that {wrong[0]} is in {index[wrong[0]]}, but it is not; fetch the checkpoint"
            " again"
        )
