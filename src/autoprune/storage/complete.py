"""Whether a checkpoint holds all that its model needs: judged by names and shapes, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable

from autoprune.errors import ModelError
from autoprune.storage.skeleton import Skeleton


def check_complete(skeleton: Skeleton) -> None:
    """Raises: ModelError naming a parameter that nothing is stored for, or a stored tensor of another shape.

    Tensors that are fused or split at load are judged when they are loaded.
    """
    where, owners = skeleton.checkpoint.directory, skeleton.owners
    parameters = dict(skeleton.model.named_parameters(remove_duplicate=False))
    shapes = skeleton.checkpoint.shapes()
    for name, owner in owners.items():
        if name not in skeleton.converted and owner in parameters and shapes[name] != tuple(parameters[owner].shape):
            raise ModelError(
                f"{where}: {name} is stored as {_sizes(shapes[name])}, which does not fit the model that config.json describes "
                f"({_sizes(parameters[owner].shape)})"
            )
    if skeleton.converted:
        return
    held = {id(parameters[owner]) for owner in owners.values() if owner in parameters}
    for pair in skeleton.model.all_tied_weights_keys.items():  # such as the head and the embedding: one of them is enough
        tied = {id(parameters[name]) for name in pair if name in parameters}
        held |= tied if tied & held else set()
    if missing := [name for name, parameter in parameters.items() if id(parameter) not in held]:
        raise ModelError(
            f"{where}: the weights hold nothing for {missing[0]} ({len(missing)} such); the checkpoint is incomplete or of another model"
        )


def _sizes(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
