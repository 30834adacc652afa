"""Steps on a whole model, behind a walk: its blocks are trained together, and what got better goes into its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.events import Emit, Phase
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.experts import eager_experts
from autoprune.model.layers import Layer
from autoprune.model.training import is_vector
from autoprune.model.walk import Inputs
from autoprune.model.whole import LastStates, ModelTraining, TwoModels
from autoprune.run.open import AnyStore
from autoprune.steps.whole import ModelStep
from autoprune.storage.applied import apply_solutions
from autoprune.storage.both import Values
from autoprune.storage.journal import Journal
from autoprune.storage.store import CheckpointStore

Losses = dict[str, dict[str, float]]  # by step: on held-out samples, before and after


@dataclass(frozen=True)
class Whole:
    """A model whose blocks are all loaded; ``layers``: by block, those to train, with the block's norms and biases."""

    store: AnyStore
    layers: Mapping[int, Sequence[Layer]]
    ids: Int[Tensor, "samples tokens"]
    batch: int
    emit: Emit

    def matrices(self, block: BlockAnatomy) -> list[str]:
        """Names in the block of the parameters that hold layers to train."""
        return list(dict.fromkeys(layer.parameter_name for layer in self.layers[block.index]))

    def vectors(self, block: BlockAnatomy) -> list[str]:
        """Names in the block of all else that is trained: nothing in a block that has no such layers."""
        layers = self.matrices(block)
        named = block.module.named_parameters() if layers else ()
        return [name for name, p in named if is_vector(name, p) and name not in layers]

    def train(
        self, steps: Sequence[ModelStep], dense: Values | LastStates, pruned: Values
    ) -> tuple[Values | None, Losses]:
        """The values of all blocks' parameters as the steps leave them, rounded as they will be stored; None where
        nothing got better.

        ``dense``: what they are trained towards. ``pruned``: the values as they are.
        """
        if isinstance(self.store, CheckpointStore):
            self.store.load_head()
        models, losses = self._models(dense, pruned), Losses()
        samples, tokens = self.ids.shape
        inputs = replace(Inputs.none(), samples=samples, all_samples=samples, tokens=tokens, batch=self.batch)
        with eager_experts(self.store.model):
            for step in steps:
                self.emit(Phase(step.title))
                judged = replace(inputs, held_out=step.needs.held_out)
                training = ModelTraining(self.store, self.ids, judged, models, step.compute_dtype, self.emit)
                try:
                    best = step.fit(training)
                finally:
                    training.restore()
                losses[step.name] = {"held_out_before": best.first, "held_out_after": best.loss}
                if best.improved:
                    models = replace(models, pruned={**models.pruned, **self._rounded(models.pruned, best.values)})
        return dict(models.pruned) if improved(losses) else None, losses

    def keep(self, journal: Journal, values: Values) -> dict[int, list[str]]:
        """Keeps the blocks with these values beside the walk's shards; by block, the stored tensors that changed."""
        assert isinstance(self.store, CheckpointStore), "only a run that writes shard by shard has a journal"
        found = dict[int, list[str]]()
        for block in self.store.anatomy.blocks:
            own = {name: values[f"{block.name}.{name}"] for name in (*self.matrices(block), *self.vectors(block))}
            stored = journal.writer.read_block(block.index)
            made = apply_solutions(self.store.skeleton, block, stored, {}, own)
            found[block.index] = [name for name in made if not torch.equal(made[name], stored[name])]
            journal.keep_finished(block.index, stored | {name: made[name] for name in found[block.index]})
        return found

    def _models(self, dense: Values | LastStates, pruned: Values) -> TwoModels:
        layers, still, left = set[str](), set[str](), list[tuple[str, Layer]]()
        for block in self.store.anatomy.blocks:
            layers |= {f"{block.name}.{name}" for name in self.matrices(block)}
            if not self.layers[block.index]:
                still |= {f"{block.name}.{name}" for name, _ in block.module.named_parameters()}
            chosen = {layer.name for layer in self.layers[block.index]}
            left += [(f"{block.name}.{la.parameter_name}", la) for la in block.layers if la.name not in chosen]
        return TwoModels(dense, pruned, layers, left, still)

    def _rounded(self, before: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Values:
        """As they will be stored, and then as the model runs with them."""
        found = Values()
        for block in self.store.anatomy.blocks:
            stored = self.store.stored_as(block)
            for name, _ in block.module.named_parameters():
                full = f"{block.name}.{name}"
                if full in values:
                    runs = before[full].dtype
                    found[full] = values[full].to(stored.get(name, runs)).to(runs)
        return found


def improved(losses: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether any step made anything better; else the walk's result stays as it is, bit for bit."""
    return any(loss["held_out_after"] < loss["held_out_before"] for loss in losses.values())


def block_values(store: AnyStore) -> Values:
    """The parameters of all blocks as they are loaded, by their full names."""
    return {f"{b.name}.{name}": p.data for b in store.anatomy.blocks for name, p in b.module.named_parameters()}
