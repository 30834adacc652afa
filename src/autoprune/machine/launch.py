"""Several processes: what `torchrun` says in the environment, and how the processes of a run find each other.

Imports torch late.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from autoprune.errors import RankError, RecipeError

if TYPE_CHECKING:
    from autoprune.machine.ranks import Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets all of them
ASSEMBLY = timedelta(minutes=10)  # how long a process waits for the others to start
PATIENCE = timedelta(hours=2)  # how long it waits for a slower one later; one that died is noticed at once
GRACE = 5.0  # seconds
TERMINATED = (
    "ended by the launcher (SIGTERM), as happens when another process of the run has died; look for that process's own"
    " error. With --save_model, the same command with --resume goes on at the last finished block"
)


@dataclass(frozen=True)
class Launch:
    """This process among those that `torchrun` started: its number in all of them and on its machine, and how many
    there are.
    """

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
            f"RANK, WORLD_SIZE and LOCAL_RANK in the environment must be numbers ({error}); start with torchrun, or"
            " unset them"
        ) from error
    return Launch(rank, local, count) if count > 1 else None


def require_alone(command: str) -> None:
    """Raises: RecipeError if several processes were started for a command that one process does."""
    if launched():
        raise RecipeError(f"{command} is the work of one process; start it without torchrun")


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this run, found by what `torchrun` said; this process alone without it.

    An error that leaves one process here ends all of them; it says on which one it was. Raises: RankError if one is
    lost.
    """
    from autoprune.machine.ranks import Alone, Together

    here = launched()
    if here is None:
        yield Alone()
        return
    with _ended_by_launcher(here.rank), _group(here) as group:
        ranks = Together(group)
        try:
            yield ranks
        except RankError:
            raise
        except Exception as error:
            if not getattr(error, "everywhere", False):
                with contextlib.suppress(RankError):  # then others are gone too, and this error is the one to tell
                    ranks.part(error)
            raise
        else:
            ranks.part()


@contextlib.contextmanager
def _group(here: Launch) -> Iterator[Any]:
    """A process group that carries tensors of the CPU by gloo and those of GPUs by NCCL.

    Raises: RankError if not all come.
    """
    import torch
    from torch import distributed

    gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    ours = not distributed.is_initialized()  # else the user's own program has joined them, with a backend of its own
    try:
        if ours:
            store = distributed.PrefixStore(f"autoprune/{next(_runs)}", _meeting_place())
            distributed.init_process_group(
                "gloo", store=store, rank=here.rank, world_size=here.count, timeout=ASSEMBLY
            )
        group = distributed.new_group(backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RankError(
            f"the processes of this run did not find each other ({reason}); start all of them with the same torchrun"
            " command"
        ) from error
    lost = False
    try:
        yield group
    except RankError:
        lost = True
        raise
    finally:
        if not (lost and gpus):  # NCCL would wait for the one that is lost
            distributed.destroy_process_group(None if ours else group)


@functools.cache
def _meeting_place() -> Any:
    """Where the processes leave word for each other: at the address that `torchrun` gave them all."""
    from torch import distributed

    return next(iter(distributed.rendezvous("env://", timeout=ASSEMBLY)))[0]


_runs = itertools.count()  # a program may prune several times: each time they find each other under another name


@contextlib.contextmanager
def _ended_by_launcher(rank: int) -> Iterator[None]:
    """`torchrun` ends the other processes by SIGTERM when one has died: they shall say so, and leave what can be
    resumed.

    A process that waits for another inside gloo or NCCL does not come to run a signal's handler. So a thread gives it
    ``GRACE`` seconds, and then speaks for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: Any) -> None:
        raise RankError(TERMINATED)

    def watch() -> None:
        if signal.SIGTERM in os.read(heard, 1) and not left.wait(GRACE):
            sys.stderr.write(f"error: rank {rank}: {TERMINATED}\n")  # nobody else will come to say it
            sys.stderr.flush()
            os._exit(2)

    left = threading.Event()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before, wakeup = signal.signal(signal.SIGTERM, end), signal.set_wakeup_fd(told)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(told)
