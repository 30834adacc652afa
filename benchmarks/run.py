"""Times the program's phases and sets each beside its floor, the work that cannot be avoided (`floor.py`): `make
bench`.

Floor and program are timed in turn in one process, several times; what counts is the median of their ratios. Seconds
are printed so that ratios can be judged, they are no claims: machines differ, and this one may be shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import ClassVar

import floor
import torch
from floor import Shape, Subject
from rich.console import Console
from rows import Row, lines, publish, show
from startup import startup_seconds

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_for
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.events import silent
from autoprune.model.anatomy import select_layers
from autoprune.model.pruning import layer_targets, open_streams, prune_blocks, send_at_once
from autoprune.model.stream import Place
from autoprune.steps.barber import Barber
from autoprune.steps.base import LayerStep, Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.manifest import versions

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
HALF, TWO_FOUR = Unstructured(0.5), SemiStructured(2, 4)
Work = Callable[[], object]


@dataclass(frozen=True)
class Given(LayerStep):
    """A first pass that only lays a ready pattern on the weights: so that LLM-Barber's pass can be timed by itself."""

    keep: dict[str, torch.Tensor] = field(default_factory=dict)
    name: ClassVar[str] = "given"
    title: ClassVar[str] = "Given pattern"

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """The pattern of the first time."""
        for p in problems:
            if p.name not in self.keep and p.target:
                self.keep[p.name] = keep_for(p.weight.float().abs(), p.target, per_row=True)
        return [LayerSolution(p.name, self.keep[p.name]) for p in problems]


@dataclass(frozen=True)
class TimedBarber(Barber):
    """LLM-Barber that notes the seconds of its exchange."""

    clock: str = "wall"
    seconds: list[float] = field(default_factory=list)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """As Barber: scores, exchange, new patterns."""
        start = CLOCKS[self.clock]()
        solutions = super().solve(problems)
        self.seconds.append(CLOCKS[self.clock]() - start)
        return solutions


class Bench:
    """All phases on one model."""

    def __init__(self, shape: Shape, device: str, runs: int, clock: str) -> None:
        self.subject, self.runs, self._clock = Subject.make(shape, device), runs, clock
        self._ids = torch.randint(
            shape.vocabulary, (shape.samples, shape.tokens), generator=torch.Generator().manual_seed(1)
        )

    def rows(self, only: str) -> Iterator[Row]:
        """The lines whose phase contains ``only``, as they are measured."""
        wanted = {name: row for name, row in self._table().items() if only in name}
        for name, make in wanted.items():
            yield make(name)

    def _table(self) -> dict[str, Callable[[str], Row]]:
        s = self.subject
        gram, factor, sweep = floor.gram_products(s), floor.factorisations(s), floor.sweep_products(s)

        def twice() -> None:
            floor.forward(s)
            floor.forward(s)

        def compensating() -> None:
            for part in (twice, gram, factor, sweep):
                part()

        copy, barber = (lambda: floor.copy_weights(s)), (lambda: floor.barber(s))
        table: dict[str, Callable[[str], Row]] = {}
        for target in (HALF, TWO_FOUR):
            table[f"magnitude {target}"] = self._pair(
                "one read and write of the weights", 10, copy, [Magnitude()], target
            )
            table[f"wanda {target}"] = self._pair("two forward passes", 1.15, twice, [Wanda()], target)
            table[f"sparsegpt {target}"] = self._pair(
                "two forward passes, Grams, factors, products", 1.3, compensating, [SparseGPT()], target
            )
        table["wanda --true_sequential"] = self._pair("two forward passes", 0.65, twice, [Wanda()], HALF, at_once=True)
        table["barber output1"] = self._pair(
            "three forward passes and a backward", 1.25, barber, [Given(), Barber("output1")], HALF
        )
        table["barber bfloat16"] = self._bfloat16
        for granularity in ("block", "layer", "output1", "input1"):
            table[f"exchange {granularity}"] = self._exchange(granularity, HALF)
        table["exchange 2:4"] = self._exchange("output1", TWO_FOUR)
        table["start-up"] = self._startup
        return table

    def _pair(
        self,
        against: str,
        goal: float,
        bottom: Work,
        methods: Sequence[Step],
        target: Target,
        *,
        at_once: bool = False,
    ) -> Callable[[str], Row]:
        return lambda name: self._measured(name, against, goal, bottom, lambda: self._prune(methods, target, at_once))

    def _measured(self, name: str, against: str, goal: float, bottom: Work, program: Callable[[], float]) -> Row:
        if self.runs > 1:  # once each, uncounted
            self._seconds(bottom)
            program()
        pairs = [(self._seconds(bottom), program()) for _ in range(self.runs)]
        below, above = zip(*pairs, strict=True)
        return Row(
            name, against, goal, tuple(p / b for b, p in pairs), statistics.median(above), statistics.median(below)
        )

    def _bfloat16(self, name: str) -> Row:
        coarse, exact = ([Given(), Barber("output1", compute_dtype=word)] for word in ("bfloat16", "float32"))
        if self.runs > 1:
            self._prune(coarse, HALF)
        pairs = [(self._prune(coarse, HALF), self._prune(exact, HALF)) for _ in range(self.runs)]
        fast, slow = zip(*pairs, strict=True)
        ratios = tuple(s / f for f, s in pairs)
        return Row(
            name,
            "how many times as quick as float32",
            1.6,
            ratios,
            statistics.median(fast),
            statistics.median(slow),
            at_least=True,
        )

    def _exchange(self, granularity: str, target: Target) -> Callable[[str], Row]:
        def make(name: str) -> Row:
            shares, spent, whole = [], [], []
            for _ in range(max(1, self.runs // 2)):
                method = TimedBarber(granularity, 0.1, clock=self._clock)
                whole.append(self._prune([Given(), method], target))
                spent.append(sum(method.seconds))
                shares.append(spent[-1] / whole[-1])
            return Row(
                name, "LLM-Barber's pass", 0.03, tuple(shares), statistics.median(spent), statistics.median(whole)
            )

        return make

    def _startup(self, name: str) -> Row:
        pairs = list(startup_seconds(self.subject.store.model, self._ids, self.runs, self._clock))
        below, above = zip(*pairs, strict=True)
        against = "importing torch and transformers, reading the model"
        return Row(
            name, against, 1.3, tuple(p / b for b, p in pairs), statistics.median(above), statistics.median(below)
        )

    def _prune(self, methods: Sequence[Step], target: Target, at_once: bool = False) -> float:
        """Seconds of the loop over all blocks, on dense weights."""
        s = self.subject
        s.restore()
        chosen = select_layers(s.store.anatomy, (), target)
        streams = open_streams(methods, s.inputs, s.stream.clone(), errors=methods[0].needs.samples)
        if at_once:
            send_at_once(s.store, streams, self._ids, Place("cpu", s.store.device))
        targets = layer_targets(s.store.anatomy, chosen, target)
        return self._seconds(lambda: list(prune_blocks(s.store, streams, chosen, targets, s.inputs, silent)))

    def _seconds(self, work: Work) -> float:
        on_gpu = self.subject.store.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        now = CLOCKS[self._clock]
        start = now()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        return now() - start


def machine() -> dict[str, object]:
    """What the figures depend on."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    names = [line.split(":", 1)[1].strip() for line in about.splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        **versions(),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (
        ("width", int),
        ("ffn", int),
        ("blocks", int),
        ("heads", int),
        ("samples", int),
        ("tokens", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Shape, name))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: processor time on one thread, for a machine that others use too",
    )
    parser.add_argument("--only", default="", help="phases whose name contains this")
    parser.add_argument(
        "--out", type=Path, help="where the JSON goes (default: benchmarks/results/DEVICE.json; nothing with --only)"
    )
    return parser.parse_args()


def main() -> None:
    """Measures, prints, and writes the results as JSON."""
    given = arguments()
    shape = Shape(
        given.width,
        given.ffn,
        given.blocks,
        given.heads,
        given.samples,
        given.tokens,
        dtype=getattr(torch, given.dtype),
    )
    if given.clock == "processor":
        torch.set_num_threads(1)
    console, rows = Console(width=150), []
    for row in Bench(shape, given.device, given.runs, given.clock).rows(given.only):
        rows.append(row)
        print(f"{row.phase}: {row.ratio:.3g}", file=sys.stderr, flush=True)
    show(rows, console)
    out = given.out or (None if given.only else Path(__file__).parent / "results" / f"{given.device}.json")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "date": str(date.today()),
            "machine": machine(),
            "shape": {**asdict(shape), "dtype": given.dtype},
            "runs": given.runs,
            "clock": given.clock,
        }
        found = [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows]
        out.write_text(json.dumps({**facts, "rows": found}, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {out}")
    if out and not given.out and given.device == "cpu":
        publish(lines(rows, facts), "bench", "performance.md")


if __name__ == "__main__":
    main()
