"""An audit that trusts only the files: zeros, N:M groups, NaN, hashes, and tensors that pruning must leave alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target
from autoprune.errors import ModelError, OutputError, RecipeError
from autoprune.events import Emit, Notice, Phase, Progress, Work, silent
from autoprune.model.walk import walk
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.files import file_sha256
from autoprune.storage.locate import locate
from autoprune.storage.manifest import MANIFEST, Manifest
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.smaller import origins_of
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore
from autoprune.storage.values import ValueCheck, is_finite

MISSING = "is missing"
ADDED = "is not in the manifest, and whoever loads the model reads it"
CARD = "README.md"  # its author may add to it


@dataclass(frozen=True)
class Fault:
    """Something in the files that is not as it must be."""

    where: str
    what: str


@dataclass(frozen=True)
class LayerAudit:
    """One pruned layer as it stands on disk; ``violations`` counts groups with more than N non-zeros, None if
    unstructured.
    """

    name: str
    weights: int
    zeros: int
    violations: int | None


@dataclass(frozen=True)
class Promise:
    """What the manifest says that the directory holds."""

    shards: Mapping[str, str]  # file name -> SHA-256
    zeros: Mapping[str, int]  # layer -> zeros
    target: Target | None  # None: a pattern that was given from outside
    written: tuple[str, ...]  # all files
    model: str
    fingerprint: str  # of the dense model's weights
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of the others; the first format notes none
    trained: tuple[str, ...] = ()  # parameters beside the layers that were changed, such as norms
    blocks: Sequence[Mapping[str, Any]] | None = None  # of a smaller model: which they were, and what of them changed
    contradictions: tuple[Fault, ...] = ()  # in the manifest itself


@dataclass(frozen=True)
class AuditReport:
    """What was found; ``hashes`` are the SHA-256 of all shards."""

    directory: Path
    layers: tuple[LayerAudit, ...]
    faults: tuple[Fault, ...]
    hashes: Mapping[str, str]

    @property
    def sound(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def audit(
    directory: Path, dense: Path | None = None, emit: Emit = silent, *, trust_remote_code: bool = False
) -> AuditReport:
    """Reads every tensor of a result directory, and compares with the dense model's files where they are given.

    Raises: OutputError if there is no manifest to say what was promised; ModelError if the dense model can't be read.
    """
    promise = read_promise(directory)
    original = open_checkpoint(dense) if dense else None
    faults, hashes = _check_files(directory, promise)
    faults += promise.contradictions
    try:
        checkpoint = open_checkpoint(directory)
        store = CheckpointStore(
            build_skeleton(checkpoint, "auto", torch.device("cpu"), trust_remote_code=trust_remote_code),
            resident=False,
        )
        layers = tuple(_audit_layers(store, promise, faults, emit))
    except ModelError as error:  # what can't be loaded can't be looked into any further
        known = any(fault.what == MISSING for fault in faults)
        return AuditReport(
            directory, (), (*faults, *(() if known else (Fault(directory.name, f"can't be loaded: {error}"),))), hashes
        )
    parameters = {
        block.full_name(layer): f"{block.name}.{layer.parameter_name}"
        for block in store.anatomy.blocks
        for layer in block.layers
    }
    faults += [
        Fault(name, "is in the manifest, but the model has no such layer")
        for name in promise.zeros
        if name not in parameters
    ]
    pruned = {parameters[name] for name in promise.zeros if name in parameters} | set(promise.trained)
    emit(Phase("comparing" if original else "reading", total=len(checkpoint.shards)))
    faults += _audit_tensors(store, original, promise, pruned, emit)
    return AuditReport(directory, layers, tuple(faults), hashes)


def _audit_tensors(
    store: CheckpointStore, original: Checkpoint | None, promise: Promise, pruned: set[str], emit: Emit
) -> Iterator[Fault]:
    """Every value is finite, and what is not ``pruned`` (parameters by name) is as the dense model has it."""
    checkpoint, used = store.skeleton.checkpoint, store.skeleton.used
    origins = origins_of(store, promise.blocks) if promise.blocks is not None else {}
    for done, name in enumerate(sorted(checkpoint.shards)):
        tensor = checkpoint.read([name])[name]
        if name in used and not is_finite(tensor):
            yield Fault(name, "holds NaN or infinity")
        source = origins.get(name, name)
        if original is not None and source is not None and store.skeleton.owners[name] not in pruned:
            yield from _compare(name, tensor, original, source)
        emit(Work("reading", done + 1, len(checkpoint.shards)))
    if original is not None and promise.blocks is None:
        for name in sorted(set(original.shards) - set(checkpoint.shards)):
            yield Fault(name, "of the dense model is absent")


def find_dense(directory: Path, model: str | None, emit: Emit = silent) -> Path | None:
    """The dense model's directory: the one that is named, else the manifest's if it is on this machine.

    Raises: ModelError if a named model can't be found; OutputError if there is no manifest.
    """
    if model is not None:
        return locate(model)
    promise = read_promise(directory)
    why = "is not at hand"
    if promise.fingerprint != "in memory" and (promise.model == "demo" or Path(promise.model).exists()):
        found = locate(promise.model)
        if ValueCheck(open_checkpoint(found), used=()).finish() == promise.fingerprint:
            return found
        why = f"is not what lies at {found} now"  # another one of that name, or its weights were changed
    emit(
        Notice(
            f"the dense model {promise.model!r} {why}, so unpruned tensors are only checked by their files' hashes;"
            " --model names it"
        )
    )
    return None


def read_promise(directory: Path) -> Promise:
    """What ``autoprune.json`` promises. Raises: OutputError if it is missing, damaged or of another form."""
    try:
        found = Manifest.read(directory)
        raw = found.raw
        return Promise(
            {entry["name"]: entry["sha256"] for entry in raw["shards"]},
            {entry["name"]: int(entry["zeros"]) for entry in (raw["layers"] if found.shrink is None else ())},
            found.target if found.shrink is None else None,
            tuple(raw["written"]),
            str(raw["model"]["name"]),
            str(raw["model"].get("fingerprint")),
            {entry["name"]: entry["sha256"] for entry in raw.get("files", ()) if entry["name"] != CARD},
            found.trained,
            found.shrink["blocks"] if found.shrink is not None else None,
            (*_contradictions(raw), *(Fault(name, ADDED) for name in found.added)),
        )
    except (OutputError, ValueError, KeyError, TypeError, AttributeError, RecipeError) as error:
        if _is_rotated(directory):
            raise OutputError(
                f"{directory} holds a rotated dense model, in which nothing is pruned; verify a model that was pruned"
                " from it"
            ) from error
        reason = (
            f"no readable {MANIFEST}, so nothing says what this directory should hold ({type(error).__name__}:"
            f" {error})"
        )
        raise OutputError(f"{directory}: {reason}; give a directory that --save_model wrote") from error


def _is_rotated(directory: Path) -> bool:
    try:
        return Manifest.read(directory).is_rotation
    except OutputError:
        return False


def _check_files(directory: Path, promise: Promise) -> tuple[list[Fault], dict[str, str]]:
    faults = [Fault(name, MISSING) for name in (*promise.shards, *promise.written) if not (directory / name).is_file()]
    faults = list(dict.fromkeys(faults))
    promised = {**promise.shards, **promise.files}
    found = {name: file_sha256(directory / name) for name in promised if (directory / name).is_file()}
    for name, digest in found.items():
        if digest != promised[name]:
            faults.append(
                Fault(name, "has another SHA-256 than the manifest says: it was changed after it was written")
            )
    faults += [
        Fault(path.name, "is not in the manifest")
        for path in sorted(directory.glob("*.safetensors"))
        if path.name not in promise.shards
    ]
    return faults, {name: digest for name, digest in found.items() if name in promise.shards}


def _audit_layers(store: CheckpointStore, promise: Promise, faults: list[Fault], emit: Emit) -> Iterator[LayerAudit]:
    blocks = store.anatomy.blocks
    emit(Phase("verifying", total=len(blocks)))
    for block in walk(store):
        for layer in block.layers:
            name = block.full_name(layer)
            if name in promise.zeros:
                yield _layer(name, layer.matrix, promise.zeros[name], promise.target, faults)
        emit(Progress(block.index, len(blocks), "verifying", 1, 1))


def _contradictions(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Shares of zeros, stated beside the counts and rounded to six digits, that are not those of the counts; files of
    which only the name is noted, or only the hash.
    """
    hashed = {str(entry["name"]) for entry in (*raw["shards"], *raw.get("files", ()))}
    for name in sorted(hashed ^ set(raw["written"])) if "files" in raw else ():
        yield Fault(name, "is noted in the manifest by half: as written, or with its SHA-256, but not both")
    named = ("name", "zeros", "weights", "sparsity")
    counts = [tuple(map(layer.get, named)) for layer in raw.get("layers", ()) if layer.get("weights")]
    whole = (MANIFEST, *(sum(count[i] for count in counts) for i in (1, 2)), raw.get("sparsity"))
    for name, zeros, weights, share in (whole, *counts) if counts else ():
        if share is not None and abs(zeros / weights - share) > 1e-6:
            yield Fault(name, f"is zero to {share:.4%} by the manifest, whose counts say {zeros / weights:.4%}")


def _layer(name: str, tensor: Tensor, promised: int, target: Target | None, faults: list[Fault]) -> LayerAudit:
    zeros = tensor.numel() - int(torch.count_nonzero(tensor))
    violations = None
    if isinstance(target, SemiStructured):
        violations = count_violations(tensor != 0, target)
        if violations:
            groups = "1 group" if violations == 1 else f"{violations:,} groups"
            faults.append(Fault(name, f"has {groups} of {target.m} with more than {target.n} non-zeros"))
    if zeros != promised:
        faults.append(Fault(name, f"has {zeros:,} zeros, the manifest says {promised:,}"))
    return LayerAudit(name, tensor.numel(), zeros, violations)


def _compare(name: str, tensor: Tensor, original: Checkpoint, source: str) -> Iterator[Fault]:
    """``source`` is the tensor's name in the dense model."""
    if source not in original.shards:
        yield Fault(name, "is not in the dense model")
        return
    dense = original.read([source])[source]
    if dense.dtype != tensor.dtype or dense.shape != tensor.shape or not _same_bytes(dense, tensor):
        yield Fault(name, "differs from the dense model, though pruning must leave it alone")


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
