"""A checkpoint of FP8 or MXFP4 weights, seen as the bfloat16 checkpoint that it stands for, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.quantised import Quantisation, quantisation_of, without_quantisation

FLOAT8 = ("F8_E4M3", "F8_E5M2")
# Stored beside weights for kernels that quantise activations or caches too; nothing is left of them in bfloat16.
AUXILIARY = ("activation_scale", "input_scale", "input_scale_ub", "qscale_act", "k_scale", "v_scale", "q_scale")
MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # OCP Microscaling Formats 1.0, section 5.3.3
E2M1 = torch.cat((MAGNITUDES, -MAGNITUDES))  # by its four bits, of which the first is the sign
E8M0_BIAS = 127  # the same, section 5.4.1
STEP = 2**22  # values widened to float32 at a time


@dataclass(frozen=True)
class Form:
    """How one weight is made: from which stored tensors, and what it will look like."""

    parts: tuple[str, ...]  # stored tensors
    shape: tuple[int, ...]
    make: Callable[..., Tensor]


@dataclass(frozen=True)
class Dequantised(Checkpoint):
    """The bfloat16 view of a quantised checkpoint: scales are gone, and every weight is made when it is read.

    ``shards`` names for each weight the file of its quantised values.
    """

    source: Checkpoint
    method: str
    forms: Mapping[str, Form] = field(repr=False)

    @property
    def files(self) -> list[Path]:
        """The shards of the quantised checkpoint."""
        return self.source.files

    @property
    def bytes(self) -> int:
        """Size of all weights in bfloat16."""
        return sum(self.sizes().values())

    @property
    def note(self) -> str:
        """What became of the quantisation, in words."""
        return (
            f"its {self.method} weights ({len(self.forms)} tensors) are pruned as the bfloat16 values that they stand"
            " for, and written in bfloat16, without a quantization_config"
        )

    @property
    def rewritten(self) -> dict[str, str]:
        """config.json as it is for weights in bfloat16."""
        plain = super().rewritten.get("config.json")
        config = json.loads(plain or (self.directory / "config.json").read_text(encoding="utf-8"))
        return {"config.json": json.dumps(without_quantisation(config), indent=2) + "\n"}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, dequantised one after the other. Raises: ModelError as ``Checkpoint.read`` does."""
        wanted = list(names)
        plain = self.source.read(name for name in wanted if name not in self.forms)
        return {name: self._make(name) if name in self.forms else plain[name] for name in wanted}

    def _make(self, name: str) -> Tensor:
        form = self.forms[name]
        parts = self.source.read(form.parts)
        return form.make(*(parts[part] for part in form.parts))

    def _pour(self, name: str, where: tuple[int, int], out: BinaryIO) -> None:
        if name in self.forms:
            out.write(self._make(name).view(-1).view(torch.uint8).numpy().data)
        else:
            self.source._pour(name, self.source._headers()[name]["data_offsets"], out)

    def _headers(self) -> dict[str, Any]:
        stored = self.source._headers()
        made = {
            name: {"dtype": "BF16", "shape": list(form.shape), "data_offsets": [0, 2 * prod(form.shape)]}
            for name, form in self.forms.items()
        }
        return {name: made.get(name) or stored[name] for name in self.shards}


def as_bfloat16(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself if it is not quantised, else its bfloat16 view.

    Raises: ModelError if it is quantised in another way than FP8 or MXFP4, or scales do not fit their weights.
    """
    try:
        config = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return checkpoint  # whoever reads the configuration says what is wrong with it
    found = quantisation_of(config, checkpoint.directory) if isinstance(config, dict) else None
    if found is None:
        return checkpoint
    forms = _forms(checkpoint, found)
    gone = {part for form in forms.values() for part in form.parts}
    shards = {name: file for name, file in checkpoint.shards.items() if name not in gone and not _auxiliary(name)}
    shards |= {name: checkpoint.shards[form.parts[0]] for name, form in forms.items()}
    return Dequantised(checkpoint.directory, shards, checkpoint, found.method, forms)


def _auxiliary(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last in AUXILIARY or last.endswith(tuple(f"_{word}" for word in AUXILIARY[:2]))


def _forms(checkpoint: Checkpoint, found: Quantisation) -> dict[str, Form]:
    shapes, dtypes = checkpoint.shapes(), checkpoint.dtypes()
    forms: dict[str, Form] = {}
    for name in checkpoint.shards:
        stem, blocks, _ = name.rpartition("_blocks")
        if blocks and f"{stem}_scales" in shapes:
            experts, rows, groups, half = shapes[name]
            forms[stem] = Form((name, f"{stem}_scales"), (experts, groups * 2 * half, rows), microscaled)
            continue
        scale = next((s for s in _scale_names(name) if s in shapes), None)
        if dtypes[name] not in FLOAT8 and not (dtypes[name] in ("I8", "U8") and scale):
            continue
        shape = shapes[name] if dtypes[name] in FLOAT8 else (*shapes[name][:-1], 2 * shapes[name][-1])
        if scale is None:
            forms[name] = Form((name,), shape, lambda weight: weight.to(torch.bfloat16))
            continue
        block = _block(shape, _grid(shapes[scale], shape), found.block, f"{checkpoint.directory}: {scale}")
        forms[name] = Form((name, scale), shape, lambda weight, scale, block=block: scaled(weight, scale, block))
    return forms


def _scale_names(name: str) -> tuple[str, ...]:
    """Where the scales of a weight may be: the names in use among checkpoints on the hub."""
    module = name.removesuffix(".weight")
    inside = (f"{module}.scale", f"{module}.qscale_weight") if module != name else ()
    return (f"{name}_scale_inv", f"{name}_scale", *inside)


def _grid(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of scales as that of a grid over a weight: one for all, one for every row, or one for every block."""
    if prod(scale) == 1:
        return (1,) * len(weight)
    if len(scale) < len(weight):
        return (*scale, *(1,) * (len(weight) - len(scale)))
    return scale


def _block(weight: tuple[int, ...], grid: tuple[int, ...], stated: tuple[int, int], where: str) -> tuple[int, int]:
    """Rows and columns that one scale is for: as config.json states, if the grid is of that size, else all alike."""
    (rows, columns), (down, across) = weight[-2:], grid[-2:]
    if (-(-rows // stated[0]), -(-columns // stated[1])) == (down, across):
        return stated
    if rows % down or columns % across or len(grid) != len(weight) or grid[:-2] not in ((1,), weight[:-2]):
        raise ModelError(f"{where} is {grid}, which does not fit a weight of {weight}; fetch the checkpoint again")
    return rows // down, columns // across


def scaled(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Float[Tensor, ...]:
    """FP8 values (or two E2M1 values per byte, the first in the low half) times their scales, in bfloat16.

    ``weight`` is ``[…, rows, columns]``, ``scale`` a grid over its last two dimensions of which one entry is for a
    ``block`` of rows and columns, the last of them cut off. Products are taken in float32 and rounded once.
    """
    if weight.dtype in (torch.int8, torch.uint8):
        weight = _unpacked(weight.view(torch.uint8))
    grid = _widened(scale).reshape(_grid(tuple(scale.shape), tuple(weight.shape)))
    if weight.dim() > 2:
        grid = grid.expand(*weight.shape[:-2], *grid.shape[-2:])
        parts = zip(weight.flatten(0, -3), grid.flatten(0, -3), strict=True)
        return torch.stack([scaled(part, scales, block) for part, scales in parts]).view(weight.shape)
    rows, columns = weight.shape
    result = torch.empty(rows, columns, dtype=torch.bfloat16)
    wide = grid[:, torch.arange(columns) // block[1]] if grid.shape[1] > 1 else grid
    step = max(1, STEP // max(1, columns))
    for start in range(0, rows, step):
        part = weight[start : start + step].float()
        down = torch.arange(start, start + len(part)) // block[0]
        result[start : start + step] = part.mul_(wide[down])
    return result


def microscaled(
    blocks: UInt8[Tensor, "experts rows groups half"], scales: UInt8[Tensor, "experts rows groups"]
) -> Float[Tensor, "experts columns rows"]:
    """MXFP4 weights of experts, in bfloat16: E2M1 values times 2^(scale - 127), a scale for every 32 of a row.

    The result is transposed, as the fused parameters of GPT-OSS are laid out.
    """
    experts, rows, groups, half = blocks.shape
    result = torch.empty(experts, groups * 2 * half, rows, dtype=torch.bfloat16)
    for index in range(experts):
        values = _unpacked(blocks[index]) * _widened(scales[index]).unsqueeze(-1)
        result[index] = values.view(rows, -1).T
    return result


def _unpacked(packed: UInt8[Tensor, "... half"]) -> Float[Tensor, "... full"]:
    return torch.stack((E2M1[(packed & 15).long()], E2M1[(packed >> 4).long()]), dim=-1).flatten(-2)


def _widened(scale: Tensor) -> Float[Tensor, ...]:
    """Scales in float32; bytes and E8M0 are exponents of two."""
    if scale.dtype == torch.uint8:
        return torch.ldexp(torch.ones(scale.shape), scale.int() - E8M0_BIAS)
    return scale.float()
