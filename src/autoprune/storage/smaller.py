"""A checkpoint seen as that of a smaller model: fewer blocks, under the names that they then have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autoprune.errors import ModelError
from autoprune.model.anatomy import examine
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.scratch import scratch
from autoprune.storage.shards import companions
from autoprune.storage.skeleton import Skeleton, build_skeleton, hollow_model, read_config
from autoprune.storage.smaller_config import with_entries
from autoprune.storage.store import CheckpointStore
from autoprune.storage.weight_files import read_json

CONFIG = "config.json"


@dataclass(frozen=True)
class Smaller(Checkpoint):
    """Some tensors of another checkpoint, as they are stored there, under other names.

    ``directory`` is a temporary one, with the smaller model's config.json and links to what lies beside the weights.
    """

    source: Checkpoint
    names: Mapping[str, str] = field(repr=False)  # the names here -> those in the source

    @property
    def files(self) -> list[Path]:
        """The files of the source."""
        return self.source.files

    @property
    def bytes(self) -> int:
        """Size of the tensors that are left."""
        return sum(self.sizes().values())

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors as the source holds them."""
        wanted = list(names)
        held = self.source.read(self.names[name] for name in wanted)
        return {name: held[self.names[name]] for name in wanted}

    def _pour(self, name: str, where: tuple[int, int], out: BinaryIO) -> None:
        self.source._pour(self.names[name], where, out)

    def _headers(self) -> dict[str, Any]:
        stored = self.source._headers()
        return {name: stored[old] for name, old in self.names.items()}


class Descriptions:
    """A temporary directory that describes models of one checkpoint's weights with other configurations."""

    def __init__(self, skeleton: Skeleton, *, trust_remote_code: bool) -> None:
        self.skeleton, self._trusted = skeleton, trust_remote_code
        source = skeleton.checkpoint
        self.directory = scratch("smaller")
        for path in companions(source.directory):
            link = self.directory / path.relative_to(source.directory)
            link.parent.mkdir(exist_ok=True)
            if path.name != CONFIG:
                link.symlink_to(path.resolve())
        stated = source.rewritten.get(CONFIG)
        self.raw: dict[str, Any] = json.loads(stated) if stated else read_json(source.directory / CONFIG)
        self._write(self.raw)
        self._config = read_config(self.directory, trust_remote_code)

    def hollow(self, kept: Sequence[int], total: int, entries: Mapping[str, Any]) -> PreTrainedModel:
        """The model without weights; from now on the directory describes it.

        Raises: ModelError if its configuration can't say so.
        """
        self._write(with_entries(self.raw, self._config, kept, total, entries))
        return hollow_model(self.directory, self.skeleton.model.dtype, trust_remote_code=self._trusted)

    def open(self, names: Mapping[str, str], device: torch.device) -> CheckpointStore:
        """The store of the model that was described last, over these tensors."""
        source = self.skeleton.checkpoint
        shards = {new: source.shards[old] for new, old in names.items()}
        view = Smaller(self.directory, shards, source, names)
        word = str(self.skeleton.model.dtype).removeprefix("torch.")
        return CheckpointStore(build_skeleton(view, word, device, trust_remote_code=self._trusted), resident=False)

    def _write(self, config: Mapping[str, Any]) -> None:
        (self.directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_shrinkable(store: CheckpointStore, *, fewer_blocks: bool) -> None:
    """Raises: ModelError for a model of which it can be told beforehand that it can't be made smaller."""
    config, skeleton = store.model.config.get_text_config(), store.skeleton
    if fewer_blocks and (shared := getattr(config, "num_kv_shared_layers", 0)):
        raise ModelError(
            f"{skeleton.checkpoint.directory}: the last {shared} blocks use keys and values of earlier ones"
            " (num_kv_shared_layers), so no block can go without the others; prune it to zeros instead"
        )
    blocks, total = store.anatomy.name, len(store.anatomy.blocks)
    if heads := [name for name, owner in skeleton.owners.items() if _beyond(owner, blocks, total)]:
        raise ModelError(
            f"{skeleton.checkpoint.directory}: {heads[0]} belongs to a head that is stored under the number of a block"
            f" ({len(heads)} such tensors), which would not fit the smaller model or pass for one of its own; make a"
            " copy of the checkpoint without them first"
        )


def open_smaller(
    store: CheckpointStore,
    place: Descriptions,
    kept: Sequence[int],
    entries: Mapping[str, Any],
    left_out: Callable[[str], bool] = lambda _: False,
) -> CheckpointStore:
    """The model that has only the blocks ``kept``; its blocks' tensors are the store's own, under new numbers.

    ``entries`` of config.json change too; what that cuts off its blocks is for the caller to cut. ``left_out``: stored
    tensors for which the smaller model has no place.

    Raises: ModelError naming what depends on how many blocks there are: a configuration that can't say it, tensors
    outside the blocks, heads that name a block.
    """
    anatomy, skeleton = store.anatomy, store.skeleton
    total = len(anatomy.blocks)
    try:
        model = place.hollow(kept, total, entries)
    except ModelError as error:
        raise ModelError(f"without blocks {_gone(kept, total)} the model can't be described: {error}") from error
    small = examine(model)
    if len(small.blocks) != len(kept) or small.name != anatomy.name:
        raise ModelError(
            f"config.json can't say that {len(kept)} of {total} blocks are left: the model then has"
            f" {len(small.blocks)}; a rule of its own makes them"
        )
    _check_outside(skeleton.model, model, f"{anatomy.name}.")
    names = {name: name for name in store.outside}
    for new, old in enumerate(kept):
        stored = (name for name in skeleton.stored_under(f"{anatomy.name}.{old}") if not left_out(name))
        names |= {renumbered(name, old, new): name for name in stored}
    made = place.open(names, store.device)
    for name, parameter in made.model.named_parameters():
        if not name.startswith(f"{anatomy.name}.") and not parameter.is_meta:
            parameter.data = skeleton.model.get_parameter(name).data  # one copy is enough
    for name, owner in made.skeleton.owners.items():
        _check_owner(name, owner, names[name], skeleton.owners[names[name]], anatomy.name, kept)
    return made


def renumbered(name: str, old: int, new: int) -> str:
    """A stored name with another block number: the first of its parts that is the old one."""
    return re.sub(rf"(?<![^.]){old}(?![^.])", str(new), name, count=1)


def origins_of(store: CheckpointStore, blocks: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """By stored name of a smaller model's blocks: the name in the model that it was made from; None if it changed.

    ``blocks``: what the record says of every block that stayed.
    """
    found: dict[str, str | None] = {}
    for block, note in zip(store.anatomy.blocks, blocks, strict=False):
        for name in store.skeleton.stored_under(block.name):
            moved = note.get("moved", {}).get(name) or renumbered(name, block.index, note["block"])
            found[name] = None if name in note["changed"] else moved
    return found


def _check_outside(old: PreTrainedModel, new: PreTrainedModel, blocks: str) -> None:
    shapes = {name: t.shape for name, t in new.state_dict().items() if not name.startswith(blocks)}
    for name, tensor in old.state_dict().items():
        if not name.startswith(blocks) and shapes.get(name) != tensor.shape:
            raise ModelError(
                f"{name} lies outside the blocks and depends on how many there are ({tuple(tensor.shape)}, then"
                f" {tuple(shapes[name]) if name in shapes else 'nothing'}); this model's blocks can't be made fewer"
            )


def _beyond(owner: str, blocks: str, total: int) -> bool:
    found = re.match(rf"{re.escape(blocks)}\.(\d+)\.", owner)
    return found is not None and int(found[1]) >= total


def _check_owner(name: str, owner: str, old: str, old_owner: str, blocks: str, kept: Sequence[int]) -> None:
    number = re.match(rf"{re.escape(blocks)}\.(\d+)\.", owner)
    wanted = f"{blocks}.{kept[int(number[1])]}.{owner[number.end() :]}" if number else owner
    if wanted != old_owner:
        raise ModelError(
            f"{old} would be stored as {name} and loaded as {owner}, which is no longer the same part of the model;"
            " its blocks can't be made fewer"
        )


def _gone(kept: Sequence[int], total: int) -> str:
    return ", ".join(str(i) for i in range(total) if i not in kept)
