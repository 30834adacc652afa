"""The check of all values of a checkpoint: none is NaN or infinite, and a fingerprint of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.storage.checkpoint import Checkpoint


class ValueCheck:
    """Judges every tensor once, whoever reads it first and in whatever order, so that one reading serves several
    purposes.
    """

    def __init__(self, checkpoint: Checkpoint, used: Collection[str] | None = None) -> None:
        """``used`` are the tensors that the model computes with; None: all. A mask that nothing reads may be
        infinite.
        """
        self._checkpoint, self._used = checkpoint, checkpoint.shards if used is None else used
        self._digests: dict[str, bytes] = {}

    def see(self, tensors: Mapping[str, Tensor]) -> None:
        """Stored tensors that somebody has read.

        Raises: ModelError naming the first one that holds NaN or infinity.
        """
        for name, tensor in tensors.items():
            if name in self._digests:
                continue
            if name in self._used and not is_finite(tensor):
                where = self._checkpoint.directory / self._checkpoint.shards[name]
                raise ModelError(
                    f"{where}: tensor {name} holds NaN or infinity; the checkpoint is damaged or its training diverged"
                )
            digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            self._digests[name] = digest.digest()

    def read(self, names: Iterable[str], tick: Callable[[int, int], None] | None = None) -> None:
        """Reads those that nobody has read yet, one at a time. Raises: ModelError as ``see`` does."""
        wanted = sorted(names)
        for done, name in enumerate(wanted):
            if name not in self._digests:
                self.see(self._checkpoint.read([name]))
            if tick:
                tick(done + 1, len(wanted))

    def finish(self, tick: Callable[[int, int], None] | None = None) -> str:
        """Reads what is left and returns the fingerprint of all tensors: the same however they are spread over
        shards.
        """
        self.read(self._checkpoint.shards, tick)
        return hashlib.sha256(b"".join(self._digests[name] for name in sorted(self._digests))).hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize < 2:  # float8: torch has no isfinite for it
        tensor = tensor.float()
    low, high = tensor.aminmax()  # NaN carries through
    return bool(torch.isfinite(low) & torch.isfinite(high))
