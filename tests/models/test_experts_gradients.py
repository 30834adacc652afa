"""Gradients of experts against autograd, one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from configs import EXPERTS, tiny_ids, tiny_model
from mixtures import experts_of, inputs_of
from runs import prune
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.model.anatomy import examine
from autoprune.model.calls import hidden_of
from autoprune.steps.base import Block, Needs, Step
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore


@dataclass(frozen=True)
class Listener(Step):
    """A step that changes nothing and remembers the gradient energies that it was given."""

    heard: dict[str, Tensor] = field(default_factory=dict)
    name: ClassVar[str] = "listener"
    needs: ClassVar[Needs] = Needs(gradients=True, own_stream=True)

    def apply(self, block: Block) -> None:
        for part in block.parts("float32"):
            part.solve(self.solve, together=False)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        notes = {"compared": 0, "inverted": 0, "grown": 0, "dropped": 0}
        self.heard.update({p.name: p.statistic.rms for p in problems})
        return [LayerSolution(p.name, p.keep, notes=notes) for p in problems]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", EXPERTS)
def test_gradients_are_those_of_single_samples(name: str, batch: int) -> None:
    """Against autograd on a copy of the dense block, one sample at a time."""
    model, ids = tiny_model(name), tiny_ids(8)
    dense = copy.deepcopy(model)
    listener = Listener()
    prune(MemoryStore(model), (Wanda(), listener), ids, batch=batch)
    index = len(examine(model).blocks) - 1
    pruned_block, dense_block = examine(model).blocks[index], examine(dense).blocks[index]
    child = experts_of(dense_block)[0].name.split(".")[0]
    for expert in experts_of(dense_block):
        expert.parameter.requires_grad_(True)
    energy: dict[str, Tensor] = {}
    for sample in ids.split(1):
        inside = inputs_of(model, pruned_block, child, sample)
        with torch.no_grad():
            sparse = hidden_of(getattr(pruned_block.module, child)(inside))
        loss = (hidden_of(getattr(dense_block.module, child)(inside)) - sparse).square().mean()
        parameters = {expert.parameter_name: expert.parameter for expert in experts_of(dense_block)}
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        for expert in experts_of(dense_block):
            energy[expert.name] = energy.get(expert.name, 0) + expert.of(gradients[expert.parameter_name]).square()
    compared = 0
    for expert in experts_of(dense_block):
        if (heard := listener.heard.get(dense_block.full_name(expert))) is not None:
            torch.testing.assert_close(heard, (energy[expert.name] / len(ids)).sqrt(), rtol=2e-3, atol=1e-7)
            compared += 1
    assert compared >= 4
