"""Hidden states of all calibration samples, kept on the device, in RAM, or in a memory-mapped file."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.errors import OutputError


@dataclass(frozen=True)
class Place:
    """Where hidden states live: ``device``, ``cpu`` or ``disk`` (then in ``folder``)."""

    where: str = "cpu"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None


class Stream:
    """One tensor ``[samples, tokens, …]`` (width, or streams and width) in micro-batches.

    Micro-batch i is read with ``[i]`` and replaced with ``[i] = …``.
    Each comes back in the precision in which it was given: some models run on float32 between bfloat16 blocks.
    """

    def __init__(self, samples: int, batch: int, place: Place) -> None:
        self._batch, self._samples, self._place = batch, samples, place
        self._data: Tensor | None = None  # in the widest precision so far
        self._dtypes: dict[int, torch.dtype] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the next block is given hidden states: that of the first micro-batch."""
        assert self._dtypes, "a stream's precision is that of what is first written"
        return self._dtypes[0]

    def __len__(self) -> int:
        return -(-self._samples // self._batch)

    def __getitem__(self, index: int) -> Float[Tensor, "samples tokens ..."]:
        assert self._data is not None, "a micro-batch is read before it was written"
        return self._data[self._rows(index)].to(self._place.device, self._dtypes[index])

    def __setitem__(self, index: int, hidden: Float[Tensor, "samples tokens ..."]) -> None:
        if self._data is None:
            self._data = _allocate((self._samples, *hidden.shape[1:]), hidden.dtype, self._place)
        elif (wider := torch.promote_types(self._data.dtype, hidden.dtype)) != self._data.dtype:
            self._data = _allocate(tuple(self._data.shape), wider, self._place).copy_(self._data)
        self._data[self._rows(index)] = hidden.detach().to(self._data.device)
        self._dtypes[index] = hidden.dtype

    def _rows(self, index: int) -> slice:
        return slice(index * self._batch, min((index + 1) * self._batch, self._samples))

    def clone(self) -> Stream:
        """An independent copy in the same place."""
        copy = Stream(self._samples, self._batch, self._place)
        for i in range(len(self)):
            copy[i] = self[i]
        return copy


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, place: Place) -> Tensor:
    if place.where == "device":
        return torch.empty(shape, dtype=dtype, device=place.device)
    if place.where == "cpu":
        return torch.empty(shape, dtype=dtype)
    folder = place.folder or Path(tempfile.gettempdir())
    size = torch.Size(shape).numel() * dtype.itemsize
    try:
        return _in_a_file(shape, dtype, folder, size)
    except OSError as error:
        elsewhere = (
            "write the result to another disk" if place.folder else "name another folder for temporary files (TMPDIR)"
        )
        raise OutputError(
            f"--activations disk: {size / 2**20:,.0f} MiB of hidden states can't be put into {folder} ({error}); free"
            f" some space there, {elsewhere}, or use --activations cpu"
        ) from error


def _in_a_file(shape: tuple[int, ...], dtype: torch.dtype, folder: Path, size: int) -> Tensor:
    """In a file without a name: its space is given back when the last tensor goes, even after kill -9."""
    handle, name = tempfile.mkstemp(suffix=".hidden", dir=folder)
    try:
        os.posix_fallocate(handle, 0, max(size, 1))
        flat = torch.from_file(name, shared=True, size=torch.Size(shape).numel(), dtype=dtype)
    finally:
        os.close(handle)
        Path(name).unlink()
    return flat.view(shape)
