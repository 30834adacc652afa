"""Reads the next block from disk while the present one is worked on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from autoprune.storage.checkpoint import Checkpoint


class ReadAhead:
    """One block ahead, in a thread of its own; for devices with memory of their own, where reading would keep them
    waiting.

    On a CPU reading and computing share the same cores and memory, so there is nothing to gain there.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._coming: tuple[int, Future[dict[str, Tensor]]] | None = None

    def begin(self, index: int, names: list[str]) -> None:
        """Starts reading a block's tensors, by their stored names."""
        self._coming = index, self._thread.submit(self._read, names)

    def take(self, index: int) -> dict[str, Tensor] | None:
        """What was read of this block; None if another one, or none, was begun. Raises: ModelError as the checkpoint's
        ``read`` does.
        """
        if self._coming is None or self._coming[0] != index:
            return None
        (_, future), self._coming = self._coming, None
        return future.result()

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        tensors = self._checkpoint.read(names)
        # Pages that stay in place can be copied to the device without a detour.
        return (
            {name: tensor.pin_memory() for name, tensor in tensors.items()} if torch.cuda.is_available() else tensors
        )
