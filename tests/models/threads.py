"""Ranks that are threads of this process: what several processes compute, without starting them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
WAIT = 60.0  # seconds


class ThreadRanks:
    """One of ``count`` ranks that share ``slots`` and meet at ``barrier``."""

    def __init__(self, rank: int, count: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count, self.first = rank, count, rank == 0
        self._slots, self._barrier = slots, barrier

    def all_gather(self, value: T) -> list[T]:
        self._slots[self.rank] = value
        self._barrier.wait(WAIT)
        values = list(self._slots)
        self._barrier.wait(WAIT)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        return self.all_gather(make() if self.first else None)[0]  # type: ignore[return-value]

    def tensors_from_first(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.from_first(make).items()}

    def all_reduce(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            parts = self.all_gather(tensor.clone())
            tensor.copy_(sum(parts[1:], parts[0]))

    def rows(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        parts = self.all_gather(mine)
        assert [len(part) for part in parts] == list(counts)
        return torch.cat(parts)

    def broadcast(self, owner: int, mine: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
        given = self.all_gather(mine)[owner]
        assert given is not None
        assert (given.shape, given.dtype) == (like.shape, dtype)
        return given.clone()


def on_ranks(count: int, work: Callable[[ThreadRanks], T]) -> list[T]:
    """What every rank returns; the first error of any is raised here."""
    slots: list[Any] = [None] * count
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, count, slots, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
