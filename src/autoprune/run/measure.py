"""What a model is worth, measured as the plan says: zeros, perplexities, accuracies."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from pathlib import Path
from typing import Any

import torch

from autoprune.data.cache import cache_folder
from autoprune.data.windows import Windows
from autoprune.errors import ModelError
from autoprune.evaluation.perplexity import perplexity
from autoprune.evaluation.remember import Memory, Notes
from autoprune.events import Emit
from autoprune.model.stream import Place
from autoprune.model.walk import walk
from autoprune.recipe.recipe import Recipe
from autoprune.results.types import About, PerplexityResult, ZeroShotResult
from autoprune.run.check import check_replay
from autoprune.run.open import AnyStore, Subject
from autoprune.run.plan import Plan
from autoprune.storage.files import file_sha256
from autoprune.storage.identity import described_by, files_of
from autoprune.storage.manifest import MANIFEST, versions


def measured(
    plan: Plan, subject: Subject, notes: Notes, memory: Memory, emit: Emit, folder: Path | None = None
) -> tuple[PerplexityResult, ...]:
    """Perplexity on every evaluation text of the plan; what an earlier run has noted is not measured again.

    ``folder``: where hidden states go if the plan keeps them on disk; None: where temporary files go. ``memory`` keeps
    the figures for later runs; a dense model's are taken from it too where the user or a benchmark names its place.
    Raises: ModelError if the model would have to be run block by block and gave other numbers then.
    """
    check_in_parts(plan, subject, emit)
    own = identity(plan, subject) if plan.evaluation else {}
    results = []
    for name, windows in plan.evaluation.items():
        make = functools.partial(measure_text, plan, subject, windows, name, name, emit, folder)
        known = memory.recall(windows, name) if cache_folder() and not plan.steps else None
        results.append(known or notes.measured(own, windows, name, make))
        if not known:
            memory.keep(windows, results[-1])
    return tuple(results)


def check_in_parts(plan: Plan, subject: Subject, emit: Emit) -> None:
    """The replay check of a model that will be measured block by block, unless it was made before pruning."""
    if plan.evaluation and not subject.store.resident and plan.calibration is None:
        check_replay(subject, next(iter(plan.evaluation.values())).ids, emit)


def measure_text(
    plan: Plan, subject: Subject, windows: Windows, name: str, shown: str, emit: Emit, folder: Path | None
) -> PerplexityResult:
    """Perplexity on one text, ``name``, which the progress calls ``shown``."""
    place = Place(plan.layout.activations, subject.store.device, folder)
    found = perplexity(subject.store, windows, shown, batch=plan.layout.batch, place=place, emit=emit)
    return dataclasses.replace(found, source=name)


def identity(plan: Plan, subject: Subject) -> dict[str, object]:
    """What a perplexity depends on besides the windows: the files of the model, and how it runs. Empty for a model in
    memory.

    The manifest of a pruned model holds the hashes of its shards; those of a dense model are known by size and time.
    """
    if subject.checkpoint is None or (plan.steps and subject is plan.subject):
        return {}
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in subject.checkpoint.files]
    files = file_sha256(subject.checkpoint.directory / MANIFEST) if plan.steps else stamps
    return {"files": files, **run_as(plan, subject)}


def _answering(plan: Plan, subject: Subject) -> dict[str, object]:
    """What answers to tasks depend on besides the tasks; empty where that can't be told from another time."""
    known = identity(plan, subject)
    if not known or subject.own_tokenizer or subject.checkpoint is None:
        return {}
    return {**known, "beside": files_of(subject.checkpoint.directory)}


def run_as(plan: Plan, subject: Subject) -> dict[str, object]:
    """How a model from disk runs, and what it is besides its weights."""
    assert subject.checkpoint is not None
    store = subject.store
    return {
        **described_by(subject.checkpoint.directory, store.model),
        "dtype": str(store.model.dtype),
        "device": store.device.type,
        "batch": plan.layout.batch,
        **versions(),
    }


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
        known=_answering(plan, subject),
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
