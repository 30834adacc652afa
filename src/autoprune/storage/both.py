"""A pruned checkpoint and its dense original in memory as wholes, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from autoprune.storage.store import CheckpointStore

Values = dict[str, Tensor]


def both_models(
    store: CheckpointStore, written: Callable[[int], Mapping[str, Tensor]] | None
) -> tuple[Values, Values]:
    """The blocks' parameters by their full names, dense and pruned; the store's model then holds the pruned ones.

    ``written``: gives a pruned block's tensors by stored names; None: the store holds the pruned blocks.
    """
    dense, pruned = Values(), Values()
    for block in store.anatomy.blocks:
        if written is not None:
            store.load_stored(block.index, written(block.index))
        names = [name for name, _ in block.module.named_parameters()]
        pruned |= {f"{block.name}.{name}": block.module.get_parameter(name).data for name in names}
        store.load_stored(block.index, store.dense_block(block.index))
        dense |= {f"{block.name}.{name}": block.module.get_parameter(name).data for name in names}
        for name in names:
            block.module.get_parameter(name).data = pruned[f"{block.name}.{name}"]
    return dense, pruned
