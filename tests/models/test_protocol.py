"""What a step may ask of the walk, by steps that exist only here: targets by layer, the dense stream, a survey, shared
observations, held-out samples, trials.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from configs import tiny_ids, tiny_model
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_for
from autoprune.core.sparsity import Target, Unstructured
from autoprune.core.statistics import InputNorm
from autoprune.model.anatomy import examine
from autoprune.model.door import prune_with
from autoprune.steps.base import Block, LayerStep, Needs, Step
from autoprune.steps.survey import Survey, SurveyResult
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

HALF = Unstructured(0.5)
SAMPLES, BATCH = 6, 2


def zeros(results: Sequence[Any]) -> dict[str, float]:
    """Share of zeros by layer."""
    return {layer.name: layer.zeros / layer.weights for result in results for layer in result.layers}


def by_depth(names: Sequence[str]) -> dict[str, Target]:
    """A target of its own for every block: a quarter, a half."""
    return {name: Unstructured(0.25 if ".layers.0." in name else 0.5) for name in names}


def layer_names(model: Any) -> list[str]:
    return [block.full_name(layer) for block in examine(model).blocks for layer in block.layers]


def test_every_layer_has_its_own_target() -> None:
    model = tiny_model("llama")
    targets: dict[str, Target] = {name: Unstructured((1 + i % 3) / 4) for i, name in enumerate(layer_names(model))}
    found = zeros(prune_with(MemoryStore(model), (Wanda(),), targets, tiny_ids(SAMPLES), batch=BATCH))
    assert found == {name: target.ratio for name, target in targets.items() if isinstance(target, Unstructured)}


@dataclass(frozen=True)
class DenseWatcher(Step):
    """Keeps the dense model's outputs of every block."""

    seen: list[Tensor] = field(default_factory=list)
    name: ClassVar[str] = "dense-watcher"
    title: ClassVar[str] = "Dense watcher"
    needs: ClassVar[Needs] = Needs(data=True, dense_stream=True)

    def apply(self, block: Any) -> None:
        self.seen.append(torch.cat([block.dense_output[i].clone() for i in block.inputs.batches]))


def outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """What every block gives when the whole model runs, micro-batch by micro-batch, by hooks alone."""
    real: list[list[Tensor]] = [[] for _ in model.model.layers]
    handles = [
        block.register_forward_hook(
            lambda _module, _args, out, i=i: real[i].append((out if isinstance(out, Tensor) else out[0]).clone())
        )
        for i, block in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for part in ids.split(BATCH):
            model(input_ids=part, use_cache=False)
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in real]


def test_the_dense_stream_is_the_dense_models() -> None:
    model, ids, watcher = tiny_model("llama"), tiny_ids(SAMPLES), DenseWatcher()
    expected = outputs(copy.deepcopy(model), ids)
    prune_with(MemoryStore(model), (Wanda(), watcher), HALF, ids, batch=BATCH)
    assert len(watcher.seen) == 2
    assert all(torch.equal(seen, real) for seen, real in zip(watcher.seen, expected, strict=True))


@dataclass(frozen=True)
class Surveyor(LayerStep):
    """Looks at the dense model, then wants a quarter of the first block and half of the second."""

    blocks: list[str] = field(default_factory=list)
    targets: dict[str, Target | None] = field(default_factory=dict)
    name: ClassVar[str] = "surveyor"
    title: ClassVar[str] = "Surveyor"
    needs: ClassVar[Needs] = Needs(statistic=InputNorm, survey=True)

    def survey(self, survey: Survey) -> SurveyResult:
        names: list[str] = []
        for block, groups in survey.blocks(InputNorm):
            self.blocks.append(block.name)
            names += [f"{block.name}.{layer.name}" for group in groups for layer in group.layers]
        return SurveyResult(by_depth(names), {"looked": len(self.blocks)})

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        self.targets.update({p.name: p.target for p in problems})
        return [LayerSolution(p.name, keep_for(p.weight.abs(), p.target, per_row=True)) for p in problems if p.target]


def test_what_a_survey_settles_reaches_solve() -> None:
    model, step = tiny_model("llama"), Surveyor()
    names = layer_names(model)
    found = zeros(prune_with(MemoryStore(model), (step,), HALF, tiny_ids(SAMPLES), batch=BATCH))
    assert step.blocks == ["model.layers.0", "model.layers.1"]
    assert step.targets == by_depth(names)
    assert found == {name: 0.25 if ".layers.0." in name else 0.5 for name in names}


class Counted(MemoryStore):
    """Counts a block's runs since the last walk began."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.runs = [0, 0]
        for index, block in enumerate(model.model.layers):
            block.register_forward_pre_hook(lambda *_, i=index: self.ran(i))

    def ran(self, index: int) -> None:
        self.runs[index] += 1

    def load(self, index: int) -> None:
        if index == 0:
            self.runs = [0, 0]


def test_steps_of_one_pass_share_one_observation() -> None:
    counts = []
    for steps in ((Wanda(),), (Wanda(), Surveyor())):
        store = Counted(tiny_model("llama"))
        prune_with(store, steps, HALF, tiny_ids(SAMPLES), batch=BATCH)
        counts.append(store.runs)
    assert counts == [[2 * SAMPLES // BATCH, SAMPLES // BATCH]] * 2


@dataclass(frozen=True)
class Splitter(LayerStep):
    """Notes how many tokens its statistics saw, and how many are left to judge by."""

    tokens: set[int] = field(default_factory=set)
    judged: list[int] = field(default_factory=list)
    name: ClassVar[str] = "splitter"
    title: ClassVar[str] = "Splitter"
    needs: ClassVar[Needs] = Needs(statistic=InputNorm, held_out=0.34)

    def apply(self, block: Any) -> None:
        self.judged.append(len(block.inputs.judged))
        super().apply(block)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        self.tokens.update(p.statistic.tokens for p in problems if isinstance(p.statistic, InputNorm))
        return [LayerSolution(p.name, torch.ones_like(p.weight, dtype=torch.bool)) for p in problems]


def test_statistics_see_only_what_is_fitted() -> None:
    step, ids = Splitter(), tiny_ids(SAMPLES)
    prune_with(MemoryStore(tiny_model("llama")), (step,), HALF, ids, batch=BATCH)
    assert step.judged == [1, 1]
    assert step.tokens == {(SAMPLES - BATCH) * ids.shape[1]}


@dataclass(frozen=True)
class Judge(Step):
    """Measures the block's loss on both parts of the samples."""

    losses: list[tuple[float, float]] = field(default_factory=list)
    name: ClassVar[str] = "judge"
    title: ClassVar[str] = "Judge"
    needs: ClassVar[Needs] = Needs(data=True, dense_stream=True, held_out=0.34)

    def apply(self, block: Block) -> None:
        self.losses.append((block.loss(held_out=False), block.loss(held_out=True)))


def test_a_blocks_loss_is_measured_on_either_part() -> None:
    """Against whole forward passes of the dense and of the pruned model, by hooks."""
    model, ids, step = tiny_model("llama"), tiny_ids(SAMPLES), Judge()
    dense = outputs(copy.deepcopy(model), ids)
    prune_with(MemoryStore(model), (Wanda(), step), HALF, ids, batch=BATCH)
    fitted, judged = slice(SAMPLES - BATCH), slice(SAMPLES - BATCH, None)
    expected = [
        float((a[part].double() - b[part].double()).square().sum() / b[part].double().square().sum())
        for a, b in zip(outputs(model, ids), dense, strict=True)
        for part in (fitted, judged)
    ]
    assert [loss for pair in step.losses for loss in pair] == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3), "parts that give the same would show nothing"


@dataclass(frozen=True)
class Doubler(LayerStep):
    """Kept weights times two."""

    name: ClassVar[str] = "doubler"
    title: ClassVar[str] = "Doubler"

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        return [
            LayerSolution(p.name, p.keep, 2 * p.weight, notes={"doubled": True})
            for p in problems
            if p.keep is not None
        ]


@dataclass(frozen=True)
class Trier(Step):
    """Doubles weights in a trial, which is taken back or kept."""

    keep: bool
    changed: list[bool] = field(default_factory=list)
    name: ClassVar[str] = "trier"
    title: ClassVar[str] = "Trier"
    refines: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(data=True)

    def apply(self, block: Block) -> None:
        before = list(weights(block))
        with block.trial() as trial:
            Doubler().apply(block)
            self.changed.append(not same(before, weights(block)))
            if self.keep:
                trial.keep()
        assert same(before, weights(block)) is not self.keep


def weights(block: Block) -> Iterator[Tensor]:
    return (parameter.detach().clone() for parameter in block.module.parameters())


def same(before: Sequence[Tensor], after: Iterator[Tensor]) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class Recorder(MemoryStore):
    """Remembers the solutions that would be written."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.solutions: dict[str, LayerSolution] = {}

    def finish(self, block: Any, solutions: Any, others: Any) -> None:
        self.solutions |= {block.full_name(layer): solutions[layer.name] for layer in block.layers}
        super().finish(block, solutions, others)


def tried(*steps: Step) -> tuple[list[Any], Recorder, list[Tensor]]:
    """Results, what would be written, and the model's parameters behind these steps."""
    model = tiny_model("llama")
    store = Recorder(model)
    return prune_with(store, steps, HALF, tiny_ids(SAMPLES), batch=BATCH), store, list(model.parameters())


def test_a_trial_is_taken_back_to_the_last_bit() -> None:
    """Weights, solutions and outcomes."""
    step = Trier(keep=False)
    first, plain, expected = tried(Wanda())
    second, store, found = tried(Wanda(), step)
    assert step.changed == [True, True]
    assert first == second
    assert same(expected, iter(found))
    assert store.solutions.keys() == plain.solutions.keys()
    for name, solution in store.solutions.items():
        assert solution.weight is None and torch.equal(solution.keep, plain.solutions[name].keep)


def test_a_trial_is_kept_when_told() -> None:
    kept, store, found = tried(Wanda(), Trier(keep=True))
    assigned, other, expected = tried(Wanda(), Doubler())
    assert kept == assigned and same(expected, iter(found))
    assert all(layer.notes["doubled"] for result in kept for layer in result.layers)
    for name, solution in store.solutions.items():
        weight = other.solutions[name].weight
        assert solution.weight is not None and weight is not None and torch.equal(solution.weight, weight)
