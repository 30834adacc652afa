"""What a model is worth, measured as the plan says: zeros, perplexities, accuracies."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

import torch

from autoprune.data.cache import cache_folder
from autoprune.errors import ModelError
from autoprune.evaluation.perplexity import perplexity
from autoprune.evaluation.remember import Notes, remembered
from autoprune.events import Emit
from autoprune.model.stream import Place
from autoprune.model.walk import walk
from autoprune.recipe.recipe import Recipe
from autoprune.results.types import About, PerplexityResult, ZeroShotResult
from autoprune.run.check import check_replay, check_values
from autoprune.run.open import AnyStore, Subject
from autoprune.run.plan import Plan
from autoprune.storage.files import file_sha256
from autoprune.storage.identity import described_by
from autoprune.storage.manifest import MANIFEST, versions


def measured(
    plan: Plan, subject: Subject, notes: Notes, emit: Emit, folder: Path | None = None
) -> tuple[PerplexityResult, ...]:
    """Perplexity on every evaluation text of the plan; what an earlier run has noted is not measured again.

    ``folder``: where hidden states go if the plan keeps them on disk; None: where temporary files go.
    Raises: ModelError if the model would have to be run block by block and gave other numbers then.
    """
    store, place = subject.store, Place(plan.layout.activations, subject.store.device, folder)
    if (
        plan.evaluation and not store.resident and plan.calibration is None
    ):  # else the replay check was made before pruning
        check_replay(subject, next(iter(plan.evaluation.values())).ids, emit)
    own = identity(plan, subject) if plan.evaluation else {}
    cached: dict[str, object] = {}
    if not plan.steps and plan.evaluation and cache_folder() and subject.checkpoint:
        cached = {
            "model": check_values(subject, emit),
            **{key: value for key, value in own.items() if key != "files"},
        }
    results = []
    for name, windows in plan.evaluation.items():
        measure = functools.partial(perplexity, store, windows, name, batch=plan.layout.batch, place=place, emit=emit)
        make = functools.partial(remembered, cached, windows, name, measure, emit) if cached else measure
        results.append(notes.measured(own, windows, name, make))
    return tuple(results)


def identity(plan: Plan, subject: Subject) -> dict[str, object]:
    """What a perplexity depends on besides the windows: the files of the model, and how it runs. Empty for a model in
    memory.

    The manifest of a pruned model holds the hashes of its shards; those of a dense model are known by size and time.
    """
    if subject.checkpoint is None or (plan.steps and subject is plan.subject):
        return {}
    folder, store = subject.checkpoint.directory, subject.store
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in subject.checkpoint.files]
    files = file_sha256(folder / MANIFEST) if plan.steps else stamps
    run_as: dict[str, object] = {
        **described_by(folder, store.model),
        "dtype": str(store.model.dtype),
        "device": store.device.type,
        "batch": plan.layout.batch,
    }
    return {"files": files, **run_as, **versions()}


def accuracy(recipe: Recipe, plan: Plan, subject: Subject, notes: Notes, emit: Emit) -> ZeroShotResult | None:
    """Zero-shot accuracy, if the recipe names tasks. Raises: ModelError as ``check_room`` does."""
    if not recipe.zeroshot.tasks:
        return None
    from autoprune.evaluation.tasks import zeroshot

    check_room(recipe, subject, resident=subject.store.resident)
    for _ in walk(subject.store):
        pass  # a resident store keeps what it has loaded
    model: Any = subject.store.model
    return zeroshot(
        model,
        subject.load_tokenizer(),
        recipe.zeroshot,
        batch=plan.layout.batch,
        emit=emit,
        notes=notes,
        known=identity(plan, subject),
    )


def check_room(recipe: Recipe, subject: Subject, *, resident: bool) -> None:
    """Raises: ModelError if tasks are wanted of a model that is not in memory as a whole: lm-evaluation-harness needs
    all of it.
    """
    if recipe.zeroshot.tasks and not resident:
        reason = f"{subject.name} does not fit into memory, and lm-evaluation-harness needs all of it"
        raise ModelError(
            f"{reason}; leave out --tasks and --save_zeroshot here, and evaluate the checkpoint on a larger machine"
        )


def count_zeros(store: AnyStore) -> float:
    """Share of zeros in the layers of a model's blocks."""
    zeros = total = 0
    for block in walk(store):
        zeros += sum(layer.count - int((layer.matrix != 0).sum()) for layer in block.layers)
        total += block.reached
    return zeros / total if total else 0.0


def about(subject: Subject) -> About:
    """The model's size and what it runs on, with the versions and the time of now."""
    model, device = subject.store.model, subject.store.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    dtype = str(model.dtype).removeprefix("torch.")
    return About(sum(parameter.numel() for parameter in model.parameters()), dtype, name, now, versions())
