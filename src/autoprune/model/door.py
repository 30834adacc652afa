"""The inner door: a store, steps, samples and a target, with nothing around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor

from autoprune.core.sparsity import Target
from autoprune.errors import RecipeError
from autoprune.events import BlockResult, Emit, silent
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.anatomy import select_layers
from autoprune.model.pruning import (
    Targets,
    check_in_sequence,
    layer_targets,
    open_streams,
    prune_blocks,
    send_at_once,
)
from autoprune.model.stream import Place
from autoprune.model.survey import survey
from autoprune.model.walk import Inputs, Store, prepare_inputs
from autoprune.steps.base import Step
from autoprune.steps.whole import ModelStep


def prune_with(
    store: Store,
    steps: Sequence[Step],
    target: Target | Targets | None,
    ids: Int[Tensor, "samples tokens"] | None = None,
    *,
    batch: int = 1,
    place: Place | None = None,
    ranks: Ranks = ALONE,
    ignore: Sequence[str] = (),
    in_sequence: bool = False,
    errors: bool = False,
    emit: Emit = silent,
) -> list[BlockResult]:
    """The inner door: prunes the store's model by these steps, calibrated on ``ids``, with nothing around it.

    ``target`` is one for all layers, or a mapping from the layers' full names. ``in_sequence``: the first pass prunes
    input group by input group. ``errors``: measure layer errors even where no step looks at data.
    Raises: AutoPruneError as the steps do; RecipeError if a step can't work in sequence, or not block by block.
    """
    if whole := [step.name for step in steps if isinstance(step, ModelStep)]:
        raise RecipeError(
            f"{whole[0]} works on the whole model behind the walk over its blocks, and this door only walks; use"
            " autoprune.prune, or leave it out"
        )
    uniform = target if not isinstance(target, Mapping) else None
    chosen = select_layers(store.anatomy, ignore, uniform)
    targets = target if isinstance(target, Mapping) else layer_targets(store.anatomy, chosen, target)
    inputs, first = Inputs.none(ranks), None
    if ids is not None and (errors or any(step.needs.samples for step in steps)):
        inputs, first = prepare_inputs(store, ids, batch, place or Place(), ranks)
    targets, _ = survey(steps, store, inputs, first, chosen, targets, uniform, ids, emit)
    streams = open_streams(steps, inputs, first, errors=errors or steps[0].needs.samples)
    if in_sequence and ids is not None:
        check_in_sequence(steps)
        send_at_once(store, streams, ids, inputs.place)
    return list(prune_blocks(store, streams, chosen, targets, inputs, emit))
