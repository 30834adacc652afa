"""What of a block a smaller width or number of experts cuts off: seen by what an entry of config.json changes.

No family is known here: an entry of config.json is the one that is sought if a smaller value makes tensors of the
blocks shorter, in proportion and along one axis each, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from autoprune.errors import ModelError
from autoprune.storage.smaller import Descriptions
from autoprune.storage.store import CheckpointStore

WIDTH = re.compile(r"^(?!.*expert).*(inter|ffn|inner|d_ff)")
EXPERTS = re.compile(r"experts")


@dataclass(frozen=True)
class Shorter:
    """One tensor of a block that gets shorter along ``axis``; each thing that goes takes ``times`` entries of it."""

    axis: int
    times: int


@dataclass(frozen=True)
class Cut:
    """An entry of config.json that gets smaller, and by block what gets shorter with it, by names in the block.

    ``paired``: where a tensor has two entries for each thing, they are neighbours; else there is one in every half.
    """

    entry: str
    old: int
    new: int
    blocks: Sequence[Mapping[str, Shorter]]
    paired: bool = False

    def index(self, part: Shorter, kept: Int[Tensor, " kept"]) -> Int[Tensor, " entries"]:
        """The entries of a tensor that stay."""
        if part.times == 1:
            return kept
        places = kept[:, None] * 2 + torch.arange(2) if self.paired else kept + self.old * torch.arange(2)[:, None]
        return places.flatten()

    def cut(
        self,
        block: int,
        tensors: Mapping[str, Tensor],
        owners: Mapping[str, str],
        alone: Collection[str],
        kept: Int[Tensor, " kept"],
    ) -> dict[str, Tensor]:
        """A block's stored tensors without what goes; ``owners``: by stored name the parameter, relative to the block.

        Experts that are stored each by itself, those of ``alone``, are left out or get their new numbers.
        """
        made: dict[str, Tensor] = {}
        places = {int(old): new for new, old in enumerate(kept)}
        for name, tensor in tensors.items():
            part = self.blocks[block].get(owners[name])
            if part is None:
                made[name] = tensor
            elif name in alone and (number := expert_number(name)) is not None:
                if number in places:
                    made[with_expert(name, places[number])] = tensor
            else:
                chosen = self.index(part, kept)
                made[name] = tensor.index_select(part.axis, chosen.to(tensor.device)).contiguous()
        return made


def expert_number(name: str) -> int | None:
    """The last number in a stored name that has one beside the block's."""
    found = re.findall(r"(?<![^.])\d+(?![^.])", name)
    return int(found[-1]) if len(found) > 1 else None


def with_expert(name: str, number: int) -> str:
    """A stored name with another last number."""
    return re.sub(r"(?<![^.])\d+(?![^.])(?!.*(?<![^.])\d+(?![^.]))", str(number), name)


def find_cut(
    store: CheckpointStore,
    place: Descriptions,
    entries: re.Pattern[str],
    new_of: Callable[[int], int],
    what: str,
    check: Callable[[Cut], None],
) -> Cut:
    """The entry of config.json (of those that ``entries`` fits) that makes blocks smaller; ``new_of`` says how small.

    ``check`` raises ModelError for one that can't be used; then others are tried.
    Raises: ModelError if none does that and nothing else; whatever ``new_of`` raises.
    """
    trouble: ModelError | None = None
    text = store.model.config.get_text_config()
    kept = range(len(store.anatomy.blocks))
    stated = json.loads(text.to_json_string(use_diff=False))
    for name in sorted(name for name in stated if entries.search(name)):
        value = stated[name]
        if value is not None and (type(value) is not int or value < 2):
            continue
        trial = value // 2 if value else 8
        try:
            model = place.hollow(kept, len(kept), {name: trial})
        except ModelError:  # the entry is bound to others
            continue
        old = value or _old_size(store.model, model, trial)
        found = [_shorter(store.model, model, f"{block.name}.", old, trial) for block in store.anatomy.blocks]
        if any(found) and None not in found and not _outside(store.model, model, f"{store.anatomy.name}."):
            cut = Cut(name, old, trial, [block or {} for block in found])
            try:
                check(cut)
            except ModelError as error:
                trouble = trouble or error
                continue
            return replace(cut, new=new_of(old))
    raise trouble or ModelError(
        f"{store.skeleton.checkpoint.directory}: no entry of config.json sets the {what} of this model's blocks and"
        " nothing else, so it can't be made smaller"
    )


def _pairs(old: PreTrainedModel, new: PreTrainedModel, prefix: str) -> dict[str, tuple[torch.Size, torch.Size | None]]:
    """Tensors under a prefix that have another shape in the other model: both shapes."""
    shapes = {name: t.shape for name, t in new.state_dict().items()}
    state = {name: t.shape for name, t in old.state_dict().items() if name.startswith(prefix)}
    return {name: (shape, shapes.get(name)) for name, shape in state.items() if shapes.get(name) != shape}


def _outside(old: PreTrainedModel, new: PreTrainedModel, blocks: str) -> bool:
    return any(not name.startswith(blocks) for name in _pairs(old, new, ""))


def _old_size(old: PreTrainedModel, new: PreTrainedModel, trial: int) -> int:
    """The size that becomes ``trial``; 0 if none does."""
    for before, after in _pairs(old, new, "").values():
        for a, b in zip(before, after or (), strict=False):
            if a != b and b == trial:
                return a
    return 0


def _shorter(
    old: PreTrainedModel, new: PreTrainedModel, prefix: str, size: int, trial: int
) -> dict[str, Shorter] | None:
    """What under a prefix gets shorter; None if something changes in another way."""
    found: dict[str, Shorter] = {}
    for name, (before, after) in _pairs(old, new, prefix).items():
        if after is None or len(before) != len(after):
            return None
        axes = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        times = before[axes[0]] // max(1, size)
        if len(axes) != 1 or times not in (1, 2) or before[axes[0]] != times * size or after[axes[0]] != times * trial:
            return None
        found[name.removeprefix(prefix)] = Shorter(axes[0], times)
    return found
