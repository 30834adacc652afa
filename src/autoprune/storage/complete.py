"""Whether a checkpoint holds all that its model needs: judged by names and shapes, before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autoprune.errors import ModelError
from autoprune.storage.skeleton import STORED, Skeleton

HEAD_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules", "mtp_num_hidden_layers")
_BUFFERS = re.compile(
    r"\.(inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)$"
)  # that older transformers stored


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
                f"{where}: {name} is stored as {_sizes(shapes[name])}, which does not fit the model that config.json"
                f" describes ({_sizes(parameters[owner].shape)})"
            )
    _check_precision(skeleton, parameters)
    if skeleton.converted:
        return
    held = {id(parameters[owner]) for owner in owners.values() if owner in parameters}
    for (
        pair
    ) in skeleton.model.all_tied_weights_keys.items():  # such as the head and the embedding: one of them is enough
        tied = {id(parameters[name]) for name in pair if name in parameters}
        held |= tied if tied & held else set()
    if missing := [name for name, parameter in parameters.items() if id(parameter) not in held]:
        raise ModelError(
            f"{where}: the weights hold nothing for {missing[0]} ({len(missing)} such); the checkpoint is incomplete"
            " or of another model"
        )


def not_loaded(skeleton: Skeleton) -> list[str]:
    """Stored tensors that the model has no place for."""
    state = skeleton.model.state_dict()
    return [name for name, owner in skeleton.owners.items() if owner not in state]


def unplaced(skeleton: Skeleton, blocks: str, count: int) -> list[str]:
    """Stored tensors that the model has no place for, but for tables that older versions of transformers stored;
    ``blocks`` is the name of its list of blocks, ``count`` their number.

    Raises: ModelError if whole blocks are among them that the model's class does not know to be there: then
    config.json says fewer than there are.
    """
    extra = [name for name in not_loaded(skeleton) if not _BUFFERS.search(name)]
    parts: dict[int, set[str]] = {}
    for owner in skeleton.owners.values():
        if found := re.match(rf"{re.escape(blocks)}\.(\d+)\.(.+)", owner):
            parts.setdefault(int(found[1]), set()).add(found[2])
    known = [part for index, part in parts.items() if index < count]
    heads = _prediction_heads(skeleton)
    more = [
        index
        for index, part in parts.items()
        if index >= count + heads and part in known and not _admitted(skeleton, f"{blocks}.{index}.")
    ]
    if more:  # others may be heads of some kind
        raise ModelError(
            f"{skeleton.checkpoint.directory}: the weights hold {blocks}.{min(more)}, but config.json knows only"
            f" {count} blocks; one of the two is wrong"
        )
    return extra


def _prediction_heads(skeleton: Skeleton) -> int:
    """Blocks for multi-token prediction that lie behind the others in the file, as config.json counts them."""
    config = skeleton.model.config.get_text_config()
    found = (getattr(config, name, None) for name in HEAD_COUNTS)
    return next((value for value in found if isinstance(value, int)), 0)


def _admitted(skeleton: Skeleton, name: str) -> bool:
    patterns = getattr(skeleton.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _check_precision(skeleton: Skeleton, parameters: Mapping[str, object]) -> None:
    for name, word in skeleton.checkpoint.dtypes().items():
        if skeleton.owners[name] in parameters and word not in STORED:
            raise ModelError(
                f"{skeleton.checkpoint.directory}: {name} is stored as {word}, which is quantised; "
                "prune the original float16, bfloat16 or float32 model"
            )


def _sizes(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
