"""A keep pattern that somebody else chose: taken from the zeros of a pruned copy of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target
from autoprune.errors import ModelError, RecipeError
from autoprune.events import Emit, Notice, silent
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.layers import Layer
from autoprune.model.walk import walk
from autoprune.steps.base import Block, LayerStep
from autoprune.steps.table import entry, table
from autoprune.storage.manifest import MANIFEST, Manifest
from autoprune.storage.store import CheckpointStore

RATIO_TOLERANCE = 0.01  # between the ratio that the user states and the zeros that a given pattern has


@dataclass(frozen=True)
class GivenPattern(LayerStep):
    """A first step that chooses nothing: weights and zeros come from a pruned copy, one block at a time."""

    pruned: CheckpointStore
    trained: tuple[str, ...] = ()  # parameters beside the layers' weights that come from the copy too
    name: ClassVar[str] = "given"
    title: ClassVar[str] = "Given pattern"

    def apply(self, block: Block) -> None:
        """Loads the pruned copy's block while it is read; ``check_pattern`` has looked at it before."""
        for given in walk(self.pruned, start=block.index, stop=block.index + 1):
            weights = {given.full_name(layer): layer.matrix.float() for layer in given.layers}
            block.solve(block.observe(None), partial(self._taken, weights), None)
            block.assign_values(
                {name: given.module.get_parameter(name).data for name in _of_block(self.trained, given)}
            )

    def _taken(self, weights: Mapping[str, Tensor], problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        if lost := [p.name for p in problems if p.name not in weights]:
            raise ModelError(f"{self.pruned.skeleton.checkpoint.directory} has no layer {lost[0]}")
        return [LayerSolution(p.name, weights[p.name] != 0, weights[p.name]) for p in problems]


def _of_block(trained: Sequence[str], block: BlockAnatomy) -> list[str]:
    """By their names in the block: those of some parameters that lie in it."""
    return [name.removeprefix(f"{block.name}.") for name in trained if name.startswith(f"{block.name}.")]


def trained_in(pruned: CheckpointStore, steps: Sequence[str]) -> tuple[str, ...]:
    """The parameters beside the layers' weights that were trained in a pruned copy, by its record; ``steps`` follow.

    Raises: RecipeError if there are some and a step would measure against dense weights behind them.
    """
    directory = pruned.skeleton.checkpoint.directory
    trained = Manifest.read(directory).trained if (directory / MANIFEST).is_file() else ()
    unfit = [name for name in steps if not entry(name).trains]
    if trained and unfit:
        fit = " or ".join(name for name, known in table().items() if known.trains)
        raise RecipeError(
            f"--pruned_model {directory}: its norms and biases were trained beside its weights ({trained[0]} and"
            f" {len(trained) - 1} more), and {unfit[0]} would measure or restore the dense weights behind them; go on"
            f" with {fit} alone, or give a result that was not trained"
        )
    return trained


def check_pattern(
    given: GivenPattern,
    chosen: Mapping[int, Sequence[Layer]],
    target: Target | None,
    ratio: float | None,
    emit: Emit = silent,
) -> None:
    """Reads the pruned copy once, block by block.

    Raises: ModelError if a layer has no zeros, is not N:M sparse as asked for, or if it or a trained parameter holds
    NaN; RecipeError if all layers together are not as sparse as ``ratio`` says.
    """
    pruned = given.pruned
    where = f"--pruned_model {pruned.skeleton.checkpoint.directory}"
    zeros = total = 0
    for block in walk(pruned):
        names = {layer.name for layer in chosen[block.index]}
        read = {block.full_name(layer): layer.matrix for layer in block.layers if layer.name in names}
        read |= {f"{block.name}.{name}": block.module.get_parameter(name) for name in _of_block(given.trained, block)}
        if bad := [name for name, value in read.items() if not bool(torch.isfinite(value).all())]:
            raise ModelError(f"{where}: {bad[0]} holds NaN or infinity; the checkpoint is damaged")
        for layer in block.layers:
            if layer.name not in names:
                continue
            name, weight = block.full_name(layer), layer.matrix
            if bool((weight != 0).all()):
                raise ModelError(
                    f"{where}: {name} has no zeros, so there is no pattern to rebuild; was this model pruned? --ignore"
                    f" {name!r} leaves the layer out"
                )
            if isinstance(target, SemiStructured) and count_violations(weight != 0, target):
                raise ModelError(
                    f"{where}: {name} is not {target} sparse; drop --sparsity_type, or give the pattern that it has"
                )
            zeros, total = zeros + int((weight == 0).sum()), total + layer.count
    if target is None:
        _warn_of_groups(where, pruned, chosen, emit)
    if target is None and ratio and total and abs(zeros / total - ratio) > RATIO_TOLERANCE:
        raise RecipeError(
            f"{where} has {zeros / total:.1%} zeros, but --sparsity_ratio says {ratio:g}; drop --sparsity_ratio, the"
            " pattern is taken as it is"
        )


def _warn_of_groups(where: str, pruned: CheckpointStore, chosen: Mapping[int, Sequence[Layer]], emit: Emit) -> None:
    """A later step would break an N:M pattern that nobody told it of."""
    first = next(block.index for block in pruned.anatomy.blocks if chosen[block.index])
    names = {layer.name for layer in chosen[first]}
    for block in walk(pruned, start=first, stop=first + 1):
        weights = [layer.matrix for layer in block.layers if layer.name in names]
        for pattern in (SemiStructured(2, 4), SemiStructured(4, 8)):
            if all(w.shape[1] % pattern.m == 0 and not count_violations(w != 0, pattern) for w in weights):
                emit(
                    Notice(
                        f"{where} looks {pattern} sparse; without --sparsity_type {pattern} what follows does not"
                        " keep to that"
                    )
                )
                break


def check_ancestry(dense: CheckpointStore, pruned: CheckpointStore, trained: Collection[str]) -> None:
    """Raises: ModelError unless the pruned checkpoint has the dense shapes, and dense values outside the layers and
    what its record calls trained.
    """
    if difference := unlike(dense, pruned, trained):
        raise ModelError(
            f"--pruned_model {pruned.skeleton.checkpoint.directory} is no pruned copy of --model"
            f" {dense.skeleton.checkpoint.directory}: {difference}. Norms and biases may differ only where a step"
            f" trained them and {MANIFEST} beside them says so"
        )


def unlike(dense: CheckpointStore, pruned: CheckpointStore, trained: Collection[str] = ()) -> str | None:
    """By what a checkpoint is no pruned copy of the dense one, in words; None if it has its shapes, and its values
    wherever no layer is and nothing was ``trained``.
    """
    here, there = dense.skeleton, pruned.skeleton
    state = here.model.state_dict()
    if difference := other_shapes(state, there.model.state_dict()):
        return difference
    layers = {f"{block.name}.{layer.parameter_name}" for block in dense.anatomy.blocks for layer in block.layers}
    mine_by_owner, theirs_by_owner = (
        {owner: name for name, owner in skeleton.owners.items()} for skeleton in (here, there)
    )
    shared = sorted(  # files may call a parameter by different names
        set(mine_by_owner) & set(theirs_by_owner) & set(state) - layers - set(trained)
    )
    if not shared:
        return "they have no tensors outside the layers that could be compared"
    for owner in shared:
        name, other_name = mine_by_owner[owner], theirs_by_owner[owner]
        ours, other = here.checkpoint.read([name])[name], there.checkpoint.read([other_name])[other_name]
        if ours.shape != other.shape or not torch.equal(ours.to(other.dtype), other):
            return f"{owner}, which pruning leaves alone, differs"
    return None


def other_shapes(dense: Mapping[str, torch.Tensor], pruned: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor that two models don't have in the same shape, in words; None if there is none."""
    mine, theirs = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (dense, pruned))
    if mine == theirs:
        return None
    odd = next(name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))
    return (
        f"it does not fit the dense model: {odd} is {theirs.get(odd, 'absent')} there and"
        f" {mine.get(odd, 'absent')} in the dense model"
    )
