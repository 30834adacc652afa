"""The stop-watch's order of work, and what its sentences say of constructed figures. No time is asserted."""

from __future__ import annotations

import dataclasses
import io
import itertools
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from autoprune.errors import ModelError
from autoprune.evaluation.speed import Stopwatch, Work, count_zeros, held_bytes_of, in_turn, is_2_4, measure
from autoprune.results.codec import dump_json, from_jsonable
from autoprune.results.speed import COMPILED, EAGER, ModelSpeed, SpeedResult, Timing, paired, verdict
from autoprune.results.speed_tables import speed_table, speed_tables, speed_text
from autoprune.results.table import print_table

ROUNDS = 6
NOISE = (1.0, 0.97, 1.04, 0.99, 1.02, 0.9)  # of the machine, round by round
JITTER = (1.01, 0.98, 1.0, 1.02, 0.99, 1.0)  # between two models in one round


def timing(factor: float = 1.0, mode: str = EAGER, jitter: tuple[float, ...] = JITTER) -> Timing:
    """A model that is ``factor`` times as quick as the dense one on a machine with ups and downs."""
    pace = [factor * noise * own for noise, own in zip(NOISE, jitter, strict=True)]
    return Timing(
        mode=mode,
        first_token=tuple(0.1 / p for p in pace),
        prompt_rate=tuple(1000 * p for p in pace),
        rate=tuple(20 * p for p in pace),
        batch_rate=tuple(100 * p for p in pace),
        working_bytes=10_000_000,
    )


def model(name: str = "dense", factor: float = 1.0, **changes: Any) -> ModelSpeed:
    """Constructed figures."""
    base = ModelSpeed(name, "bfloat16", 200_000_000, 200_000_000, 100_000_000, 0, 0, NOISE, (timing(factor),))
    return dataclasses.replace(base, **changes)


DENSE = model(timings=(timing(jitter=(1.0,) * ROUNDS),))
FEWER = {"weights": 80_000_000, "file_bytes": 160_000_000, "weight_bytes": 160_000_000}


def test_tokens_of_other_vocabularies_are_not_the_same_text() -> None:
    mine, other = (dataclasses.replace(DENSE, vocabulary=words) for words in (49_152, 128_256))
    assert "vocabulary" not in verdict(mine, mine, EAGER, 4)
    assert "It has 128,256 words in its vocabulary, and dense 49,152" in verdict(other, mine, EAGER, 4)


def test_ratios_are_taken_round_by_round() -> None:
    ratio = paired((2.0, 4.0, 9.0), (1.0, 2.0, 3.0))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 3.0)
    assert str(ratio) == "2.00 (2.00 to 3.00)"


@pytest.mark.parametrize(("rounds", "odd"), [(6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (16, 3), (32, 9)])
def test_how_many_rounds_may_contradict(rounds: int, odd: int) -> None:
    """What a table of the sign test says at 0.05, two-sided."""
    others = (1.0,) * rounds
    assert paired((2.0,) * (rounds - odd) + (0.5,) * odd, others).steady
    assert paired((0.5,) * (rounds - odd) + (2.0,) * odd, others).steady
    assert not paired((2.0,) * (rounds - odd - 1) + (0.5,) * (odd + 1), others).steady
    assert not paired(others, others).steady


def test_every_other_round_goes_backwards() -> None:
    said, done = list[str](), list[int]()

    def run(name: str) -> str:
        said.append(name)
        return f"{name}{len(said)}"

    found = in_turn([lambda: run("a"), lambda: run("b"), lambda: run("c")], 3, done.append)
    assert "".join(said) == "abccbaabc"
    assert found == [["a1", "a6", "a7"], ["b2", "b5", "b8"], ["c3", "c4", "c9"]]
    assert done == [*range(1, 10)]


class Drifting:
    """A clock, and a model whose ``generate`` takes the longer the later it is, as on a machine that grows hot."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, work: float) -> None:
        self.now += work * (1 + self.now / 200)


class Fake:
    """Stands for a model: one unit of work for each token, times ``cost``."""

    def __init__(self, clock: Drifting, cost: float) -> None:
        self.clock, self.cost = clock, cost

    def generate(self, ids: torch.Tensor, *, generation_config: Any, streamer: Stopwatch, **_: Any) -> None:
        streamer.put(ids)
        for _ in range(generation_config.max_new_tokens):
            self.clock.spend(self.cost)
            streamer.put(ids[:, :1])


def test_a_drift_of_the_machine_hits_all_alike() -> None:
    clock = Drifting()
    models = {"a": Fake(clock, 1.0), "b": Fake(clock, 1.0), "c": Fake(clock, 0.5)}
    ids = torch.zeros(4, 6, dtype=torch.long)
    peaks = {(name, EAGER): None for name in models}
    found = measure(models, Work(ids[:1], ids, 3), peaks, 6, lambda _: None, clock)
    rates = {name: found[name][0].rate for name in models}
    assert rates["a"][0] > 1.15 * rates["a"][-1]  # what measuring one model after the other would have seen
    assert paired(rates["b"], rates["a"]).median == pytest.approx(1.0, abs=0.02)
    assert paired(rates["c"], rates["a"]).median == pytest.approx(2.0, abs=0.05)


def test_rates_are_those_of_the_tokens_behind_the_first() -> None:
    class Steady(Drifting):
        def spend(self, work: float) -> None:
            self.now += work

    clock = Steady()
    ids = torch.zeros(4, 6, dtype=torch.long)
    (found,) = measure({"a": Fake(clock, 2.0)}, Work(ids[:1], ids, 3), {("a", EAGER): 7}, 5, lambda _: None, clock)[
        "a"
    ]
    assert found.first_token == (2.0,) * 5
    assert found.prompt_rate == (4 * 6 / 2,) * 5
    assert found.rate == (1 / 2,) * 5
    assert found.batch_rate == (4 / 2,) * 5
    assert found.working_bytes == 7


def test_another_number_of_tokens_is_an_error() -> None:
    watch = Stopwatch(itertools.count().__next__)
    for _ in range(3):
        watch.put(torch.zeros(1))
    with pytest.raises(ModelError, match="gave 2 new tokens and not 5"):
        watch.times(5)


def test_zeros_bring_nothing() -> None:
    said = verdict(model("half", zeros=50_000_000), DENSE, EAGER, 8)
    assert said == (
        "nothing was gained. 50% of its weights are zeros, which dense tensors store and multiply like any other"
        " number."
    )


def test_zeros_in_2_4_name_the_hardware() -> None:
    said = verdict(model("semi", zeros=50_000_000, zeros_2_4=50_000_000), DENSE, EAGER, 8)
    assert said.startswith("nothing was gained. 50% of its weights are zeros")
    assert "They are 2:4" in said
    assert "sparse tensor cores of NVIDIA GPUs from Ampere on" in said
    assert said.endswith("this run used dense kernels.")
    scattered = verdict(model("half", zeros=50_000_000, zeros_2_4=1_000_000), DENSE, EAGER, 8)
    assert "2:4" not in scattered


def test_fewer_weights_bring_what_was_measured() -> None:
    said = verdict(model("fewer", 1.25, **FEWER), DENSE, EAGER, 8)
    assert said.startswith("gained: size of the file × 0.80, memory of the weights × 0.80, ")
    assert "tokens per second at batch 1 × 1.25 (1.22 to 1.27)" in said
    assert "zeros" not in said
    slow = verdict(model("fewer", **FEWER), DENSE, EAGER, 8)
    assert slow == "gained: size of the file × 0.80, memory of the weights × 0.80."


def test_figures_decide_and_not_the_zeros() -> None:
    odd = verdict(model("half", 1.5, zeros=50_000_000), DENSE, EAGER, 8)
    assert odd.startswith("gained: ")
    assert "look for another cause" in odd
    both = verdict(model("both", 1.25, zeros=40_000_000, **FEWER), DENSE, EAGER, 8)
    assert "the gain is that there are fewer weights" in both
    lost = verdict(model("slow", 0.8), DENSE, EAGER, 8)
    assert lost.startswith("nothing was gained; lost: time to the first token × 1.25")


def test_what_one_round_contradicts_or_is_too_small_is_no_gain() -> None:
    wavering = model("wavering", timings=(timing(1.2, jitter=(1.0, 1.1, 0.82, 1.0, 1.0, 1.0)),))
    assert verdict(wavering, DENSE, EAGER, 8) == "nothing was gained."
    slight = model("slight", timings=(timing(1.03, jitter=(1.0,) * ROUNDS),))
    assert verdict(slight, DENSE, EAGER, 8) == "nothing was gained."


def result(*models: ModelSpeed) -> SpeedResult:
    return SpeedResult(models, {"rounds": ROUNDS, "batch_size": 8})


def test_compiled_is_compared_with_compiled() -> None:
    modes = (DENSE.timings[0], timing(2.0, COMPILED, (1.0,) * ROUNDS))
    quick = (timing(1.0), timing(2.6, COMPILED))
    found = result(model(timings=modes), model("fewer", timings=quick))
    of_fewer, compiling, compiled = found.sentences
    assert of_fewer == "fewer: nothing was gained."
    assert compiling.startswith("dense, compiled, against eager: gained: time to the first token × 0.50")
    assert "fewer, compiled: gained: " in compiled
    assert "tokens per second at batch 1 × 1.30" in compiled
    names = [row[0] for row in speed_table(found).rows]
    assert names.count("fewer") == len({row[1] for row in speed_table(found).rows})
    assert (
        names.count("compiled: fewer") == names.count("fewer") - 3
    )  # file, memory of the weights and loading are one


def test_long_names_leave_80_columns_that_tell_the_modes_apart() -> None:
    modes = (timing(), timing(2.0, COMPILED))
    found = result(*(model(name, timings=modes) for name in ("a-model-with-a-long-name", "b-model-with-a-long-name")))
    out = io.StringIO()
    print_table(speed_table(found), Console(file=out, width=80, markup=False))
    lines = [line for line in out.getvalue().splitlines() if "first token" in line]
    starts = ("a-model", "b-model", "compiled: a-model", "compiled: b-model")
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 4


def test_the_table_fits_80_columns_and_cuts_no_name() -> None:
    found = result(DENSE, model("a-model-with-a-rather-long-name", 1.25, **FEWER), model("half", zeros=50_000_000))
    out = io.StringIO()
    console = Console(file=out, width=80, markup=False)
    for table in speed_tables(found):
        print_table(table, console)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "a-model-with-a-rather-long-name" in out.getvalue()
    text = speed_text(found)
    assert "half" in text
    assert text.endswith(found.sentences[-1])
    assert "1.22 to 1.27" in text


def test_json_both_ways() -> None:
    import json

    found = result(DENSE, model("half", zeros=50_000_000))
    raw = json.loads(dump_json(found))
    assert tuple(from_jsonable(ModelSpeed, one) for one in raw["models"]) == found.models


def test_no_figure_for_memory_where_nobody_counts_it() -> None:
    blind = tuple(
        dataclasses.replace(one, timings=tuple(dataclasses.replace(t, working_bytes=None) for t in one.timings))
        for one in (DENSE, model("half", zeros=50_000_000))
    )
    assert "peak memory" not in speed_text(result(*blind))
    assert "peak memory" in speed_text(result(DENSE))


def test_zeros_are_counted_in_matrices_and_shared_ones_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.Linear(8, 4), "c": nn.Linear(8, 4, bias=False)})
    net["b"].weight = net["a"].weight
    with torch.no_grad():
        net["a"].bias.zero_()
        net["a"].weight.copy_(torch.tensor([1.0, 0, 0, 1, 0, 1, 1, 0]).expand(4, 8))
        net["c"].weight.fill_(1.0)[0] = 0.0
    assert count_zeros(net) == (64, 16 + 8, 16)
    assert held_bytes_of(net) == 4 * (32 + 4 + 4 + 32)


def test_2_4_is_seen_along_either_side() -> None:
    groups = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]])
    assert is_2_4(groups)
    assert is_2_4(groups.T.contiguous())
    assert is_2_4(groups.expand(2, 3, 4))
    assert not is_2_4(torch.tensor([[1.0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]]))
    assert not is_2_4(torch.ones(3, 6))
