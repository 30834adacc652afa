"""A keep pattern that somebody else chose: taken from the zeros of a pruned copy of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from autoprune.core.problem import LayerProblem, LayerSolution, Scope
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured
from autoprune.errors import ModelError
from autoprune.storage.stores import CheckpointStore


@dataclass(frozen=True)
class GivenPattern:
    """A first pass that chooses nothing: weights and zeros come from the pruned checkpoint, one block at a time."""

    pruned: CheckpointStore
    statistic: ClassVar[None] = None
    scope: ClassVar[Scope] = Scope.INPUT_GROUP

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Raises: ModelError if a layer has no zeros, or not the N:M pattern that was asked for."""
        solutions = []
        for problem in problems:
            weight = self._weight(problem.name)
            keep = weight != 0
            where = f"{self.pruned.skeleton.checkpoint.directory}: {problem.name}"
            if bool(keep.all()):
                raise ModelError(f"{where} has no zeros, so there is no pattern to rebuild; was this model pruned? Leave the layer out with --ignore {problem.name!r}")
            if isinstance(problem.target, SemiStructured) and count_violations(keep, problem.target):
                raise ModelError(f"{where} is not {problem.target} sparse; drop --sparsity_type, or give the pattern that it has")
            solutions.append(LayerSolution(problem.name, keep, weight))
        return solutions

    def _weight(self, name: str) -> torch.Tensor:
        for block in self.pruned.anatomy.blocks:
            for layer in block.layers:
                if block.full_name(layer) == name:
                    if not self.pruned.is_loaded(block.index):
                        self.pruned.release_all()
                    self.pruned.load(block.index)
                    return layer.matrix.float()
        raise ModelError(f"{self.pruned.skeleton.checkpoint.directory} has no layer {name}")


def check_ancestry(dense: CheckpointStore, pruned: CheckpointStore) -> None:
    """Raises: ModelError unless the pruned checkpoint has the dense one's shapes and its unpruned tensors."""
    here, there = dense.skeleton, pruned.skeleton
    where = f"--pruned_model {there.checkpoint.directory}"
    mine = {name: tuple(p.shape) for name, p in here.model.state_dict().items()}
    theirs = {name: tuple(p.shape) for name, p in there.model.state_dict().items()}
    if mine != theirs:
        odd = next(name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))
        raise ModelError(f"{where} does not fit the dense model: {odd} is {theirs.get(odd, 'absent')} there and {mine.get(odd, 'absent')} in --model {here.checkpoint.directory}")
    names = sorted(set(dense.outside) & set(pruned.outside))
    for name in names:
        ours, other = here.checkpoint.read([name])[name], there.checkpoint.read([name])[name]
        if not torch.equal(ours.to(other.dtype), other):
            raise ModelError(f"{where} is no pruned copy of --model {here.checkpoint.directory}: {name}, which pruning leaves alone, differs")
