"""The stop-watch: models that take turns in every round, so that the machine's ups and downs hit all alike.

What is timed is the plain library's own ``generate``, greedy and with a cache; a streamer notes when tokens come.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GenerationConfig

from autoprune.errors import AutoPruneError, ModelError
from autoprune.machine.peak import peak_growth
from autoprune.results.speed import COMPILED, EAGER, Timing
from autoprune.storage.internals import compiled_everywhere

T = TypeVar("T")
Clock = Callable[[], float]
CACHES = ("past_key_values", "cache_params", "state", "mems")  # what models call what they keep of the text before
DENSER = 0.25  # share of zeros from which a matrix is looked at for 2:4


@dataclass(frozen=True)
class Work:
    """What is generated: prompts [batch, tokens], and new tokens behind each."""

    one: Int[Tensor, "1 tokens"]
    many: Int[Tensor, "batch tokens"]
    new_tokens: int


@dataclass(frozen=True)
class Times:
    """Seconds of one call: until the first new token, and from there to the last."""

    first: float
    rest: float


class Stopwatch:
    """A streamer: ``generate`` hands it the prompt, and then each new token as soon as the host has it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock()
        self._times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """Notes the time."""
        self._times.append(self._clock())

    def end(self) -> None:
        """Nothing to do."""

    def times(self, new_tokens: int) -> Times:
        """Raises: ModelError if another number of tokens came, so that rates would be wrong."""
        found = self._times[1:]  # the first is the prompt
        if len(found) != new_tokens:
            raise ModelError(f"generate gave {len(found)} new tokens and not {new_tokens}, so its speed can't be told")
        return Times(found[0] - self._start, found[-1] - found[0])


def in_turn(runs: Sequence[Callable[[], T]], rounds: int, done: Callable[[int], None]) -> list[list[T]]:
    """Calls each of ``runs`` once a round, and gives what they return, by run. Every other round goes backwards, so
    that of any two each is as often the earlier one.
    """
    found: list[list[T]] = [[] for _ in runs]
    for number in range(rounds):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for place, index in enumerate(order, start=1):
            found[index].append(runs[index]())
            done(number * len(runs) + place)
    return found


def generate(model: Any, ids: Int[Tensor, "batch tokens"], new_tokens: int, mode: str, clock: Clock) -> Times:
    """One greedy generation of exactly ``new_tokens``, timed."""
    plan = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, use_cache=True, pad_token_id=0)
    if mode == COMPILED:
        plan.cache_implementation, plan.compile_config = "static", compiled_everywhere()
    watch = Stopwatch(clock)
    model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plan, streamer=watch)
    return watch.times(new_tokens)


def check_cache(name: str, model: Any, ids: Int[Tensor, "1 tokens"]) -> None:
    """Raises: ModelError for a model that keeps nothing of the text before, or does not run on token ids alone."""
    try:
        with torch.no_grad():
            given = model(input_ids=ids, use_cache=True)
    except (AutoPruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model's own code does with what is missing
        raise ModelError(f"{name} does not run on token ids alone ({type(error).__name__}: {error})") from error
    if all(getattr(given, cache, None) is None for cache in CACHES):
        raise ModelError(
            f"{name}: {type(model).__name__} keeps no cache, so every new token would read the whole text again; speed"
            " measures generation with a cache only, leave this model out"
        )


def warm_up(name: str, model: Any, work: Work, mode: str) -> int | None:
    """Runs all that will be timed once, compiles where asked, and gives the peak in bytes beside the weights.

    Raises: ModelError with the reason if the model can't be compiled.
    """

    def run() -> None:
        for ids in (work.one, work.many):
            generate(model, ids, work.new_tokens, mode, time.perf_counter)

    if mode == EAGER:
        run()
        return peak_growth(run, model.device)
    try:
        run()
    except (AutoPruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of dynamo, inductor, the C++ compiler, or the cache
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: --compiled does not work with {type(model).__name__} here ({type(error).__name__}: {reason});"
            " leave it out, or leave out the model"
        ) from error
    if not hasattr(model, "_compiled_call"):  # transformers would go on without compiling, and only warn
        raise ModelError(
            f"{name}: --compiled does not work with {type(model).__name__}: transformers has no cache of fixed size"
            " for it, or does not compile such models; leave it out, or leave out the model"
        )
    return peak_growth(run, model.device)


def measure(
    models: Mapping[str, Any],
    work: Work,
    peaks: Mapping[tuple[str, str], int | None],
    rounds: int,
    done: Callable[[int], None],
    clock: Clock = time.perf_counter,
) -> dict[str, tuple[Timing, ...]]:
    """Every model in every mode, in turn, ``rounds`` times; by name. ``peaks``: what ``warm_up`` said, by name and
    mode.
    """
    keys = list(peaks)

    def run(name: str, mode: str) -> tuple[Times, Times]:
        one, many = (generate(models[name], ids, work.new_tokens, mode, clock) for ids in (work.one, work.many))
        return one, many

    taken = in_turn([functools.partial(run, *key) for key in keys], rounds, done)
    timings = {key: _timing(key[1], work, times, peaks[key]) for key, times in zip(keys, taken, strict=True)}
    return {name: tuple(timing for (owner, _), timing in timings.items() if owner == name) for name in models}


def _timing(mode: str, work: Work, times: Sequence[tuple[Times, Times]], peak: int | None) -> Timing:
    later = work.new_tokens - 1
    return Timing(
        mode=mode,
        first_token=tuple(one.first for one, _ in times),
        prompt_rate=tuple(work.many.numel() / many.first for _, many in times),
        rate=tuple(later / one.rest for one, _ in times),
        batch_rate=tuple(later * len(work.many) / many.rest for _, many in times),
        working_bytes=peak,
    )


def count_zeros(model: nn.Module) -> tuple[int, int, int]:
    """Weights of matrices, zeros among them, and those of the zeros that lie in 2:4 matrices. Shared weights count
    once.
    """
    weights = zeros = semi = 0
    for parameter in model.parameters():
        if parameter.dim() < 2:
            continue
        here = parameter.numel() - int(torch.count_nonzero(parameter))
        weights, zeros = weights + parameter.numel(), zeros + here
        semi += here if here >= DENSER * parameter.numel() and is_2_4(parameter.detach()) else 0
    return weights, zeros, semi


def is_2_4(weight: Tensor) -> bool:
    """Whether every four consecutive weights along the input hold at least two zeros. Linear layers have their inputs
    last, others (GPT-2, some experts) last but one, so both are tried.
    """
    return any(
        matrix.shape[-1] % 4 == 0 and bool(((matrix.reshape(-1, 4) != 0).sum(-1, dtype=torch.int8) <= 2).all())
        for matrix in (weight, weight.mT)
    )


def held_bytes_of(model: nn.Module) -> int:
    """Bytes of all weights and buffers, shared ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
