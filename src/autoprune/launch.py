"""Several processes: what `torchrun` says in the environment, and how the processes of a run find each other. Imports torch late."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from autoprune.errors import RankError, RecipeError

if TYPE_CHECKING:
    from autoprune.model.ranks import Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets all of them
PATIENCE = timedelta(hours=2)  # how long a process waits for a slower one; one that died is noticed at once


@dataclass(frozen=True)
class Launch:
    """This process among those that `torchrun` started: its number in all of them and on its machine, and how many there are."""

    rank: int
    local_rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes, evaluates and prints."""
        return self.rank == 0


def launched() -> Launch | None:
    """What `torchrun` said; None if it did not start this process, or started only this one.

    Raises: RecipeError if its variables hold no numbers.
    """
    if any(name not in os.environ for name in VARIABLES):
        return None
    try:
        rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise RecipeError(
            f"RANK, WORLD_SIZE and LOCAL_RANK in the environment must be numbers ({error}); start with torchrun, or unset them"
        ) from error
    return Launch(rank, local, count) if count > 1 else None


def require_alone(command: str) -> None:
    """Raises: RecipeError if several processes were started for a command that one process does."""
    if launched():
        raise RecipeError(f"{command} is the work of one process; start it without torchrun")


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this run, found by what `torchrun` said; this process alone without it.

    An error that leaves one process here ends all of them; it says on which one it was. Raises: RankError if one is lost.
    """
    from autoprune.model.ranks import Alone, Together

    if launched() is None:
        yield Alone()
        return
    with _ended_by_launcher():
        ranks = Together(_group())
        lost = False
        try:
            yield ranks
        except RankError:
            lost = True
            raise
        except Exception as error:
            with contextlib.suppress(RankError):  # then others are gone too, and this error is the one to tell
                ranks.part(error)
            raise
        else:
            ranks.part()
        finally:
            _leave(lost)


def _group() -> Any:
    """A process group that carries tensors of the CPU by gloo and those of GPUs by NCCL. Raises: RankError if not all come."""
    import torch
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        if distributed.is_initialized():  # by the user's own program, with a backend of its own
            return distributed.new_group(backend=backend, timeout=PATIENCE)
        distributed.init_process_group(backend, timeout=PATIENCE)
        return distributed.group.WORLD
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RankError(f"the processes of this run did not find each other ({reason}); start all of them with the same torchrun command") from error


def _leave(lost: bool) -> None:
    import torch
    from torch import distributed

    if distributed.is_initialized() and not (lost and torch.cuda.is_available()):  # NCCL would wait for the one that is lost
        distributed.destroy_process_group()


@contextlib.contextmanager
def _ended_by_launcher() -> Iterator[None]:
    """`torchrun` ends the other processes by SIGTERM when one has died: they shall say so, and leave what can be resumed."""

    def end(_number: int, _frame: Any) -> None:
        raise RankError(
            "ended by the launcher (SIGTERM), which it does when another process of the run has died; "
            "look above for that one's error. With --save_model, the same command with --resume goes on at the last finished block"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
