"""The processes among which a run is shared out (its ranks), and what they tell each other.

Every exchange begins with a meeting in which each rank says whether it is well. So an error on one rank ends all of
them with its message, whatever the others are about to exchange, and nobody waits for one that will not come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed

from autoprune.errors import AutoPruneError, RankError

T = TypeVar("T")
FIRST = 0  # the rank that writes, evaluates and prints
WIRED = ("cpu", "cuda")  # devices whose tensors gloo and NCCL carry; those of others go through the CPU


class Ranks(Protocol):
    """What the loop asks of the processes that share a run. Every rank must ask the same things in the same order."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def count(self) -> int:
        """Number of processes."""
        ...

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes, evaluates and prints."""
        ...

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        ...

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank."""
        ...

    def tensors_from_first(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Named tensors in memory that rank 0 has, on every rank."""
        ...

    def all_reduce(self, *tensors: Tensor) -> None:
        """Each tensor becomes its sum over all ranks, in place; all ranks get the same bits."""
        ...

    def rows(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, one below the other; ``counts`` says how many each has."""
        ...

    def broadcast(self, owner: int, mine: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
        """The owner's tensor, of the shape and on the device of ``like``; only the owner has to give ``mine``."""
        ...


class Alone:
    """One process: it has all of the samples, and nobody to tell."""

    rank, count, first = FIRST, 1, True

    def all_gather(self, value: T) -> list[T]:
        """Its own value."""
        return [value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What it makes itself."""
        return make()

    def tensors_from_first(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What it has itself."""
        return dict(make())

    def all_reduce(self, *tensors: Tensor) -> None:
        """The sum over one."""

    def rows(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """Its own rows."""
        return mine

    def broadcast(self, owner: int, mine: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Its own tensor."""
        assert mine is not None
        return mine


ALONE = Alone()


class Together:
    """Several processes over torch.distributed: gloo for tensors of the CPU, NCCL for those of GPUs."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank, self.count = distributed.get_rank(group), distributed.get_world_size(group)
        self.first = self.rank == FIRST

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, by rank; they travel pickled."""
        self._synchronise()
        return self._objects(value)

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes; an error there is raised on every rank at the next meeting."""
        made = [make() if self.first else None]
        self._synchronise()
        with _connected():
            distributed.broadcast_object_list(made, src=FIRST, group=self._group)
        return made[0]  # type: ignore[return-value]

    def tensors_from_first(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Rank 0's tensors, byte for byte."""
        have = dict(make()) if self.first else {}
        shapes = self.from_first(lambda: [(name, t.shape, t.dtype) for name, t in have.items()])
        result = {}
        for name, shape, dtype in shapes:
            result[name] = have[name].contiguous() if self.first else torch.empty(shape, dtype=dtype)
            self._broadcast(result[name], FIRST)
        return result

    def all_reduce(self, *tensors: Tensor) -> None:
        """An all-reduce; the order of the additions is the backend's."""
        self._synchronise()
        for tensor in tensors:
            carried = _carried(tensor)
            with _connected():
                distributed.all_reduce(carried, group=self._group)
            if carried is not tensor:
                tensor.copy_(carried)

    def rows(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """One broadcast from every rank that has any."""
        self._synchronise()
        parts = []
        for rank, count in enumerate(counts):
            parts.append(mine.contiguous() if rank == self.rank else mine.new_empty((count, *mine.shape[1:])))
            parts[-1] = self._broadcast(parts[-1], rank)
        return torch.cat(parts)

    def broadcast(self, owner: int, mine: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A broadcast."""
        self._synchronise()
        given = torch.empty(like.shape, dtype=dtype, device=like.device) if mine is None else mine.contiguous()
        return self._broadcast(given, owner)

    def part(self, error: Exception | None = None) -> None:
        """The last meeting: this rank leaves, with or without an error. Raises: what another rank fails with."""
        self._synchronise(error)

    def _broadcast(self, tensor: Tensor, owner: int) -> Tensor:
        """As bytes, so that every dtype can travel. ``tensor`` is contiguous."""
        if tensor.numel():
            carried = _carried(tensor)
            with _connected():
                distributed.broadcast(carried.reshape(-1).view(torch.uint8), src=owner, group=self._group)
            if carried is not tensor:
                tensor.copy_(carried)
        return tensor

    def _objects(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.count
        with _connected():
            distributed.all_gather_object(values, value, group=self._group)
        return values

    def _synchronise(self, error: Exception | None = None) -> None:
        """Raises what another rank fails with; if this one fails too, its caller raises ``error``."""
        trouble = torch.tensor([error is not None], dtype=torch.uint8)
        with _connected():
            distributed.all_reduce(trouble, distributed.ReduceOp.MAX, group=self._group)
        if not trouble.item():
            return
        faults = self._objects(None if error is None else _described(error))
        if isinstance(error, AutoPruneError):
            error.everywhere = True
        if error is None:
            rank, (kind, text) = next((rank, fault) for rank, fault in enumerate(faults) if fault)
            found = kind(f"rank {rank}: {text}")
            found.everywhere = True
            raise found


def _described(error: Exception) -> tuple[type[AutoPruneError], str]:
    """What the others raise; a defect keeps its traceback on its own rank."""
    if isinstance(error, AutoPruneError):
        return type(error), str(error)
    return (
        RankError,
        f"the program failed there ({type(error).__name__}: {error}); its traceback is in that process's output",
    )


def _carried(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type in WIRED else tensor.cpu()


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Raises: RankError if the connection to another rank breaks."""
    try:
        yield
    except RuntimeError as error:  # torch's errors of this kind derive from it
        reason = (
            str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        )  # without places in gloo's source, and good wishes
        raise RankError(
            f"another process of this run is gone ({reason}), so the run ends here; look for that process's own error."
            " With --save_model, the same command with --resume goes on at the last finished block"
        ) from error
