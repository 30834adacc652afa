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
    held |= {id(head) for head in _tied_head(skeleton)}
    if missing := [name for name, parameter in parameters.items() if id(parameter) not in held]:
        raise ModelError(
            f"{where}: the weights hold nothing for {missing[0]} ({len(missing)} such); the checkpoint is incomplete or of another model"
        )


def _tied_head(skeleton: Skeleton) -> Iterable[object]:
    """Parameters of the head, where it shares the embedding's: they need not be stored."""
    head = skeleton.model.get_output_embeddings()
    tied = getattr(skeleton.model.config.get_text_config(), "tie_word_embeddings", False)
    return list(head.parameters()) if tied and head is not None else []


def _sizes(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
