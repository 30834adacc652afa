"""An audit that trusts only the files: zeros, N:M groups, NaN, hashes, and tensors that pruning must leave alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, parse_target
from autoprune.errors import ModelError, OutputError
from autoprune.model.events import Emit, Notice, Phase, Step, silent
from autoprune.storage.checkpoint import Checkpoint, read_shard_names
from autoprune.storage.locate import locate
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.stores import CheckpointStore
from autoprune.storage.writer import MANIFEST, file_sha256


@dataclass(frozen=True)
class Fault:
    """Something in the files that is not as it must be."""

    where: str
    what: str


@dataclass(frozen=True)
class LayerAudit:
    """One pruned layer as it stands on disk; ``violations`` counts groups with more than N non-zeros, None if unstructured."""

    name: str
    weights: int
    zeros: int
    violations: int | None


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


def audit(directory: Path, dense: Path | None = None, emit: Emit = silent, *, trust_remote_code: bool = False) -> AuditReport:
    """Reads every tensor of a result directory, and compares with the dense model's files where they are given.

    Raises: OutputError if there is no manifest to say what was promised; ModelError if the dense model can't be read.
    """
    promised = _read_manifest(directory)
    faults, hashes = _check_shards(directory, promised)
    if any(fault.what.startswith(("is missing", "can't be read")) for fault in faults):
        return AuditReport(directory, (), tuple(faults), hashes)
    checkpoint = Checkpoint.open(directory)
    store = CheckpointStore(build_skeleton(checkpoint, "auto", torch.device("cpu"), trust_remote_code=trust_remote_code), resident=False)
    layers = tuple(_audit_layers(store, promised, faults, emit))
    pruned = {f"{block.name}.{layer.parameter_name}" for block in store.anatomy.blocks for layer in block.layers if _promised_layer(promised, block.full_name(layer))}
    original = Checkpoint.open(dense) if dense else None
    for name in sorted(checkpoint.shards):
        tensor = checkpoint.read([name])[name]
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            faults.append(Fault(name, "holds NaN or infinity"))
        if original is not None and store.skeleton.owners[name] not in pruned:
            _compare(name, tensor, original, faults)
    if original is not None:
        faults += [Fault(name, "of the dense model is absent") for name in sorted(set(original.shards) - set(checkpoint.shards))]
    return AuditReport(directory, layers, tuple(faults), hashes)


def find_dense(directory: Path, model: str | None, emit: Emit = silent) -> Path | None:
    """The dense model's directory: the one that is named, else the manifest's if it is on this machine.

    Raises: ModelError if a named model can't be found; OutputError if there is no manifest.
    """
    if model is not None:
        return locate(model)
    name = _read_manifest(directory)["model"]["name"]
    if name == "demo" or Path(name).is_dir():
        return locate(name)
    emit(Notice(f"the dense model {name!r} is not at hand, so unpruned tensors are only checked by their hashes; --model names it"))
    return None


def _audit_layers(store: CheckpointStore, promised: dict[str, Any], faults: list[Fault], emit: Emit) -> Iterator[LayerAudit]:
    target, blocks = _target(promised), store.anatomy.blocks
    emit(Phase("verifying", total=len(blocks)))
    for block in blocks:
        store.load(block.index)
        for layer in block.layers:
            entry = _promised_layer(promised, block.full_name(layer))
            if entry:
                yield _layer(block.full_name(layer), layer.matrix, entry, target, faults)
        store.release(block.index)
        emit(Step(block.index, len(blocks), "verifying", 1, 1))


def _promised_layer(promised: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((entry for entry in promised["layers"] if entry["name"] == name), None)


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{directory}: no readable {MANIFEST}, so nothing says what this directory should hold ({error})") from error


def _check_shards(directory: Path, promised: dict[str, Any]) -> tuple[list[Fault], dict[str, str]]:
    faults, hashes = [], {}
    for entry in promised["shards"]:
        path = directory / entry["name"]
        if not path.is_file():
            faults.append(Fault(entry["name"], "is missing"))
            continue
        hashes[path.name] = file_sha256(path)
        if hashes[path.name] != entry["sha256"]:
            faults.append(Fault(path.name, "has another SHA-256 than the manifest says: it was changed after it was written"))
        try:
            read_shard_names(path)
        except ModelError as error:
            faults.append(Fault(path.name, f"can't be read: {error}"))
    return faults, hashes


def _target(promised: dict[str, Any]) -> Target | None:
    pruning = promised["recipe"]["pruning"]
    if pruning["sparsity_type"] == "unstructured" and pruning["sparsity_ratio"] is None:
        return None  # a pattern that was given from outside
    return parse_target(pruning["sparsity_type"], pruning["sparsity_ratio"])


def _layer(name: str, tensor: Tensor, entry: dict[str, Any], target: Target | None, faults: list[Fault]) -> LayerAudit:
    zeros = tensor.numel() - int(torch.count_nonzero(tensor))
    violations = None
    if isinstance(target, SemiStructured):
        violations = count_violations(tensor != 0, target)
        if violations:
            faults.append(Fault(name, f"has {violations} groups of {target.m} with more than {target.n} non-zeros"))
    if zeros != entry["zeros"]:
        faults.append(Fault(name, f"has {zeros:,} zeros, the manifest says {entry['zeros']:,}"))
    return LayerAudit(name, tensor.numel(), zeros, violations)


def _compare(name: str, tensor: Tensor, original: Checkpoint, faults: list[Fault]) -> None:
    if name not in original.shards:
        faults.append(Fault(name, "is not in the dense model"))
        return
    dense = original.read([name])[name]
    if dense.dtype != tensor.dtype or dense.shape != tensor.shape or not _same_bytes(dense, tensor):
        faults.append(Fault(name, "differs from the dense model, though pruning must leave it alone"))


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
