"""A GGUF file, seen as the bfloat16 checkpoint that transformers' own reader makes of it, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from autoprune.errors import ModelError
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.internals import gguf_config, gguf_conversion
from autoprune.storage.scratch import scratch
from autoprune.storage.skeleton import hollow_model

SUFFIX = ".gguf"


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """A GGUF file by the names of transformers' parameters.

    ``directory`` is a temporary one that holds what else a checkpoint has: config.json and a tokenizer. ``parts`` are
    the file's tensors that make a parameter, ``shaped`` its shape.
    """

    path: Path
    parts: Mapping[str, tuple[Any, ...]] = field(repr=False)
    shaped: Mapping[str, tuple[int, ...]] = field(repr=False)
    mapping: Mapping[str, str] = field(repr=False)  # from the file's names to transformers'
    processor: Any = field(repr=False)

    @property
    def files(self) -> list[Path]:
        """The one file."""
        return [self.path]

    @property
    def bytes(self) -> int:
        """Size of all weights in bfloat16."""
        return sum(self.sizes().values())

    @property
    def note(self) -> str:
        """What became of the quantisation, in words."""
        return (
            f"the weights of its GGUF file ({len(self.parts)} parameters) are pruned as the bfloat16 values that they"
            " stand for, and written in bfloat16 as an ordinary checkpoint"
        )

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named parameters, dequantised one after the other.

        Raises: ModelError if one has another shape than the header led to expect.
        """
        return {name: self._make(name) for name in names}

    def _make(self, name: str) -> Tensor:
        from gguf import dequantize

        made: dict[str, Tensor] = {}
        for part in self.parts[name]:
            result = self.processor.process(
                weights=dequantize(part.data, part.tensor_type),
                name=part.name,
                tensor_key_mapping=self.mapping,
                parsed_parameters={"tensors": made},  # where fused experts are put together
            )
            if result.name in self.mapping:
                made[name] = torch.from_numpy(result.weights.copy())
        if made[name].shape != self.shaped[name]:
            raise ModelError(
                f"{self.path}: {name} is stored as {tuple(made[name].shape)}, but transformers understands the file's"
                f" header as {self.shaped[name]}; prune the original model"
            )
        return made[name].to(torch.bfloat16)

    def _pour(self, name: str, where: tuple[int, int], out: BinaryIO) -> None:
        out.write(self._make(name).contiguous().view(-1).view(torch.uint8).numpy().data)

    def _headers(self) -> dict[str, Any]:
        return {
            name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [0, 2 * prod(shape)]}
            for name, shape in self.shaped.items()
        }


def open_gguf(path: Path) -> GgufCheckpoint:
    """Reads the file's header, and writes its configuration and tokenizer into a temporary directory.

    Raises: ModelError if the package that reads such files is not there, or transformers does not know the model.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f"{path}: GGUF files are read by one more package: pip install 'autoprune[gguf]'") from error
    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        directory = _companions(path)
        model = hollow_model(directory, torch.bfloat16)
        processor, mapping = gguf_conversion(model, architecture, gguf_config(path))
    except Exception as error:  # what transformers and the reader make of a damaged file or an unknown model
        raise ModelError(
            f"{path}: transformers can't read this GGUF file ({type(error).__name__}: {error}); prune the original"
            " model, which its page names as base_model"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts: dict[str, list[Any]] = {}
    for tensor in reader.tensors:
        name = mapping.get(tensor.name) or mapping.get(tensor.name.removesuffix(".weight"))
        if name in shapes:
            parts.setdefault(name, []).append(tensor)
    return GgufCheckpoint(
        directory,
        {name: str(path.absolute()) for name in parts},
        path,
        {name: tuple(found) for name, found in parts.items()},
        {name: shapes[name] for name in parts},
        mapping,
        processor,
    )


def _companions(path: Path) -> Path:
    """A directory of the program's own, for as long as it runs."""
    directory = scratch("gguf")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.dtype = torch.bfloat16
    config.save_pretrained(directory)
    try:
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(directory)
    except Exception:  # whatever transformers makes of a file without a vocabulary
        return directory  # whoever needs the tokenizer says that it is missing
    return directory
