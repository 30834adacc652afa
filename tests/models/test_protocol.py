"""What a step may ask of the walk, by steps that exist only here: targets by layer, the dense stream, a survey, shared
observations, held-out samples, trials.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from configs import tiny_ids, tiny_model
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_for
from autoprune.core.sparsity import Target, Unstructured
from autoprune.core.statistics import InputNorm
from autoprune.model.anatomy import examine
from autoprune.model.door import prune_with
from autoprune.steps.base import Block, LayerStep, Needs, Step, Survey, SurveyResult
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
    targets = by_depth(layer_names(model))
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


def test_the_dense_stream_is_the_dense_models() -> None:
    model, ids, watcher = tiny_model("llama"), tiny_ids(SAMPLES), DenseWatcher()
    dense, real = copy.deepcopy(model), list[Tensor]()
    for block in dense.model.layers:
        block.register_forward_hook(lambda _m, _a, out: real.append(out if isinstance(out, Tensor) else out[0]))
    expected: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for part in ids.split(BATCH):
            real.clear()
            dense(input_ids=part, use_cache=False)
            for index, hidden in enumerate(real):
                expected[index].append(hidden.clone())
    prune_with(MemoryStore(model), (Wanda(), watcher), HALF, ids, batch=BATCH)
    assert len(watcher.seen) == 2
    for seen, parts in zip(watcher.seen, expected, strict=True):
        assert torch.equal(seen, torch.cat(parts))


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
class Doubler(LayerStep):
    """Kept weights times two."""

    name: ClassVar[str] = "doubler"
    title: ClassVar[str] = "Doubler"

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        return [LayerSolution(p.name, p.keep, 2 * p.weight) for p in problems if p.keep is not None]


@dataclass(frozen=True)
class Trier(Step):
    """Doubles weights in a trial that is taken back."""

    changed: list[bool] = field(default_factory=list)
    name: ClassVar[str] = "trier"
    title: ClassVar[str] = "Trier"
    refines: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(data=True)

    def apply(self, block: Block) -> None:
        before = list(weights(block))
        with block.trial():
            Doubler().apply(block)
            self.changed.append(not same(before, weights(block)))
        assert same(before, weights(block))


def weights(block: Block) -> Iterator[Tensor]:
    return (parameter.detach().clone() for parameter in block.module.parameters())


def same(before: Sequence[Tensor], after: Iterator[Tensor]) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_trial_is_taken_back_to_the_last_bit() -> None:
    ids, plain, tried, step = tiny_ids(SAMPLES), tiny_model("llama"), tiny_model("llama"), Trier()
    first = prune_with(MemoryStore(plain), (Wanda(),), HALF, ids, batch=BATCH)
    second = prune_with(MemoryStore(tried), (Wanda(), step), HALF, ids, batch=BATCH)
    assert step.changed == [True, True]
    assert first == second
    assert same(list(plain.parameters()), iter(tried.parameters()))
