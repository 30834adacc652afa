"""config.json of a model with fewer blocks: its depth, its lists by block, and the block numbers that it names."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from autoprune.errors import ModelError

# Entries that count leading blocks: so many of another kind stand in front, or so many attend to everything.
LEADING = ("first_k_dense_replace", "max_window_layers", "num_dense_layers", "n_dense_layers", "num_hash_layers")
_NUMBERS = re.compile(r"layer|block|indic|idx")  # in the names of lists of block numbers
_NO_LIST_BY_BLOCK = re.compile(r"token|section|limit|architectures|range|factor|multiplier|^mtp")
_PATTERN = re.compile(r"pattern|layers_block|enum")  # in the names of words with one letter for each block


def text_part(raw: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """The part of a config.json that describes the language model, to be changed in place."""
    text = config.get_text_config()
    if text is config:
        return raw
    name = next(name for name, value in vars(config).items() if value is text)
    part: dict[str, Any] = raw.setdefault(name, {})
    return part


def with_entries(
    raw: Mapping[str, Any], config: PreTrainedConfig, kept: Sequence[int], total: int, entries: Mapping[str, Any]
) -> dict[str, Any]:
    """A config.json (``raw``, which ``config`` was made from) for the blocks ``kept`` of ``total``.

    ``entries`` are others of the language model that change, by their names in the file.
    Raises: ModelError if it does not say how many blocks there are.
    """
    made = copy.deepcopy(dict(raw))
    part, text = text_part(made, config), config.get_text_config()
    part.update(entries)
    if len(kept) == total:
        return made
    depth = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if getattr(text, depth, None) != total:
        raise ModelError(
            f"config.json says {depth} {getattr(text, depth, None)!r}, but the model has {total} blocks; its blocks"
            " can't be made fewer"
        )
    stated = {**json.loads(text.to_json_string(use_diff=False)), depth: total}
    changed = {name: _renumbered(name, value, kept, total) for name, value in stated.items()}
    part.update({name: value for name, value in changed.items() if value != stated[name]})
    part[depth] = len(kept)
    return made


def _renumbered(name: str, value: Any, kept: Sequence[int], total: int) -> Any:
    """An entry as it is for the blocks that stay; most of them have nothing to do with blocks."""
    places = {old: new for new, old in enumerate(kept)}
    if name in LEADING and isinstance(value, int):
        return value if value >= total else sum(block < value for block in kept)
    if isinstance(value, str) and len(value) == total and _PATTERN.search(name):
        return "".join(value[block] for block in kept)
    if not isinstance(value, list) or not value or _NO_LIST_BY_BLOCK.search(name):
        return value
    numbers = all(type(entry) is int and 0 <= entry < total for entry in value)
    ascending = numbers and value == sorted(set(value))
    if len(value) == total and not (ascending and _NUMBERS.search(name)):
        return [value[block] for block in kept]
    if ascending and _NUMBERS.search(name):
        return [places[block] for block in value if block in places]
    return value
