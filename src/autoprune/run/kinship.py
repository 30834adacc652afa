"""Whether two models can be compared: one vocabulary, one tokenizer, one context; and whether one is the other's
ancestor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.events import Emit, Notice
from autoprune.model.anatomy import Anatomy
from autoprune.run.open import Subject
from autoprune.storage.manifest import MANIFEST
from autoprune.storage.pruned import other_shapes, unlike
from autoprune.storage.store import CheckpointStore

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LEAST_ZEROS = 0.01  # of a layer: fewer may come about by rounding
PROBE = (
    "The 2 quick-brown foxes don't jump;  über\n\tdef f(x): return x**2 # 文字"  # what tokenizers treat differently
)


def check_alike(dense: Subject, other: Subject, emit: Emit, *, unrelated: bool) -> None:
    """A tokenizer that is not there is taken for the dense model's, which is said.

    Raises: ModelError if predictions of the two are of different tokens or, unless they are ``unrelated``, were
    made for different lengths of text.
    """
    ours, theirs = dense.config.vocab_size, other.config.vocab_size
    if ours != theirs:
        raise ModelError(
            f"{other.name} has a vocabulary of {theirs:,} tokens and the dense model {dense.name} one of {ours:,}, so"
            " their predictions can't be compared; give models of one vocabulary"
        )
    if difference := _tokenizers_differ(dense, other, emit):
        raise ModelError(
            f"{other.name} and {dense.name} have different tokenizers ({difference}), so the same text means different"
            " tokens to them; give models of one tokenizer"
        )
    if dense.context != other.context and not unrelated:
        raise ModelError(
            f"{other.name} was made for a context of {other.context} tokens and {dense.name} for {dense.context}, so"
            " one was not pruned from the other; --unrelated compares them nevertheless, in windows that both take"
        )


def shortest_context(subjects: Sequence[Subject]) -> int | None:
    """The longest window that all models take, in tokens; None where no configuration says anything."""
    return min((subject.context for subject in subjects if subject.context is not None), default=None)


def check_descent(dense: Subject, fingerprint: str, other: Subject, other_fingerprint: str, emit: Emit) -> None:
    """Says so where a manifest names another origin and yet nothing speaks against this one.

    Raises: ModelError saying by what they differ if ``other`` was not pruned from the dense model.

    A manifest that names the dense model's ``fingerprint`` is enough; without one, what pruning leaves alone must be
    the same, and some layer must have the dense weights or zeros. A manifest of the dense model must not name the
    ``other_fingerprint``, nor the other's origin.
    """
    if other.checkpoint and _ancestor_of(other.checkpoint.directory) == fingerprint:
        return
    if dense.checkpoint and _ancestor_of(dense.checkpoint.directory) == other_fingerprint:
        raise ModelError(
            f"{dense.name} was made from {other.name}, as its {MANIFEST} says, and so is not the dense model of the"
            " two; name the dense one first, or compare them nevertheless with --unrelated"
        )
    if dense.checkpoint and other.checkpoint and _siblings(dense.checkpoint.directory, other.checkpoint.directory):
        raise ModelError(
            f"{dense.name} and {other.name} were both made from one model, as their {MANIFEST} say, and so neither is"
            " the dense one; name that first, or compare them nevertheless with --unrelated"
        )
    if isinstance(dense.store, CheckpointStore) and isinstance(other.store, CheckpointStore):
        difference = unlike(dense.store, other.store) or _trained(_on_disk(dense.store, other.store))
    else:
        difference = _unlike_in_memory(dense, other)
    if difference:
        raise ModelError(
            f"{other.name} is no pruned copy of {dense.name}: {difference}; --unrelated compares them nevertheless"
        )
    if other.checkpoint and _ancestor_of(other.checkpoint.directory):
        emit(
            Notice(
                f"{other.name}: its {MANIFEST} names another model than {dense.name} as its origin; what pruning"
                " leaves alone is the same in both, so they are compared"
            )
        )


def _tokenizers_differ(dense: Subject, other: Subject, emit: Emit) -> str | None:
    """In words; None if they are the same, or if one of the models comes without."""
    if dense.checkpoint is None or other.checkpoint is None:
        return None
    here, there = dense.checkpoint.directory, other.checkpoint.directory
    if all(_same_file(here / name, there / name) for name in TOKENIZER_FILES):
        return None
    read: list[Any] = []
    for subject in (dense, other):
        try:
            read.append(subject.load_tokenizer())
        except ModelError:
            emit(Notice(f"{subject.name}: no tokenizer can be read there, so it is not known whether it is the same"))
            return None
    ours, theirs = read
    if ours.get_vocab() != theirs.get_vocab():
        odd = sorted(ours.get_vocab().items() ^ theirs.get_vocab().items())
        return f"{len({token for token, _ in odd})} tokens, such as {odd[0][0]!r}"
    a, b = (tokenizer(PROBE, verbose=False)["input_ids"] for tokenizer in (ours, theirs))
    return None if a == b else "the same tokens, but a text is cut into them in different ways"


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _ancestor_of(directory: Path) -> str | None:
    """The fingerprint of the model that this one was pruned from, if a manifest says so."""
    try:
        return str(json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["model"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _siblings(one: Path, other: Path) -> bool:
    ancestor = _ancestor_of(one)
    return ancestor is not None and ancestor == _ancestor_of(other)


def _trained(layers: Iterable[tuple[str, Tensor, Tensor]]) -> str | None:
    """In words, that a model was trained rather than pruned: of its layers, each with the dense weight and its own,
    not one has the dense values, or more zeros. None as soon as one has.
    """
    first = None
    for name, ours, theirs in layers:
        more = int((theirs == 0).sum()) - int((ours == 0).sum())
        if more > LEAST_ZEROS * theirs.numel() or torch.equal(ours.to(theirs.device, theirs.dtype), theirs):
            return None
        first = first or name
    return first and f"{first} and all other layers differ, and none of them has zeros that the dense one has not"


def _on_disk(dense: CheckpointStore, other: CheckpointStore) -> Iterator[tuple[str, Tensor, Tensor]]:
    here, there = (
        (store.skeleton.checkpoint, {owner: name for name, owner in store.skeleton.owners.items()})
        for store in (dense, other)
    )
    for owner in _layers(dense.anatomy):
        if owner in here[1] and owner in there[1]:
            ours, theirs = (checkpoint.read([names[owner]])[names[owner]] for checkpoint, names in (here, there))
            yield owner, ours, theirs


def _layers(anatomy: Anatomy) -> list[str]:
    """The parameters that are layers' weights, by their full names."""
    return list(dict.fromkeys(f"{b.name}.{layer.parameter_name}" for b in anatomy.blocks for layer in b.layers))


def _unlike_in_memory(dense: Subject, other: Subject) -> str | None:
    """Of models of which one is in memory: all shapes, and the values outside the blocks, as far as both have them
    loaded.
    """
    ours: dict[str, Tensor] = dense.store.model.state_dict()
    theirs: dict[str, Tensor] = other.store.model.state_dict()
    if difference := other_shapes(ours, theirs):
        return difference
    inside = tuple(f"{block.name}." for block in dense.store.anatomy.blocks)
    for name in sorted(name for name in ours if not name.startswith(inside)):
        a, b = ours[name], theirs[name]
        if not (a.is_meta or b.is_meta) and not torch.equal(a.to(b.device, b.dtype), b):
            return f"{name}, which pruning leaves alone, differs"
    held = ((name, ours[name], theirs[name]) for name in _layers(dense.store.anatomy))
    return _trained((name, a, b) for name, a, b in held if not (a.is_meta or b.is_meta))
