"""What the tests of this folder share: open a saved model, prune it, write it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from autoprune.core.sparsity import Target, Unstructured
from autoprune.events import BlockResult
from autoprune.model.door import prune_with
from autoprune.model.stream import Place
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore, MemoryStore

HALF = Unstructured(0.5)
BARBER = Barber(prune_granularity="layer", threshold=0.2)


def open_store(
    directory: Path,
    written: dict[str, Tensor] | None = None,
    *,
    passed: dict[str, Tensor] | None = None,
    resident: bool = False,
    dtype: str = "auto",
) -> CheckpointStore:
    """A checkpoint's store; finished blocks go to ``written``, what the first of two passes made of them to
    ``passed``.
    """
    skeleton = build_skeleton(open_checkpoint(directory), dtype, torch.device("cpu"), trust_remote_code=False)
    store = CheckpointStore(skeleton, resident=resident)
    if written is not None:
        kept = {} if passed is None else passed
        store.write_to(lambda _, tensors: written.update(tensors), lambda _n, _i, tensors: kept.update(tensors))
    return store


def prune(
    store: CheckpointStore | MemoryStore,
    steps: tuple[Step, ...],
    ids: Tensor,
    target: Target = HALF,
    batch: int = 4,
    place: Place | None = None,
    ignore: tuple[str, ...] = (),
) -> list[BlockResult]:
    """Prunes by these steps, one after the other on each block, with hidden states in ``place``."""
    return prune_with(store, steps, target, ids, batch=batch, place=place, ignore=ignore)


def write_checkpoint(source: Path, directory: Path, tensors: Mapping[str, Tensor]) -> None:
    shutil.copytree(source, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
