"""What a model is worth, measured as the plan says: zeros, perplexities, accuracies."""

from __future__ import annotations

import functools

from autoprune.data.cache import cache_folder
from autoprune.errors import ModelError
from autoprune.evaluation.perplexity import perplexity
from autoprune.evaluation.remember import Notes, remembered
from autoprune.model.events import Emit
from autoprune.model.stream import Place
from autoprune.planning import AnyStore, Plan, Subject, check_values
from autoprune.recipe import Recipe
from autoprune.report.results import PerplexityResult, ZeroShotResult
from autoprune.storage.manifest import versions
from autoprune.storage.writer import MANIFEST, file_sha256


def measured(plan: Plan, subject: Subject, notes: Notes, emit: Emit) -> tuple[PerplexityResult, ...]:
    """Perplexity on every evaluation text of the plan; what an earlier run has noted is not measured again."""
    store, place = subject.store, Place("cpu", subject.store.device)
    identity = _identity(plan, subject) if plan.evaluation else {}
    cached: dict[str, object] = {}
    if not plan.methods and plan.evaluation and cache_folder() and subject.checkpoint:
        cached = {"model": check_values(subject, emit), **{key: value for key, value in identity.items() if key != "files"}}
    results = []
    for name, windows in plan.evaluation.items():
        measure = functools.partial(perplexity, store, windows, name, batch=plan.layout.batch, place=place, emit=emit)
        make = functools.partial(remembered, cached, windows, name, measure) if cached else measure
        results.append(notes.measured(identity, windows, name, make))
    return tuple(results)


def _identity(plan: Plan, subject: Subject) -> dict[str, object]:
    """What a perplexity depends on besides the windows: the files of the model, and how it runs. Empty for a model in memory.

    The manifest of a pruned model holds the hashes of its shards; those of a dense model are known by size and time.
    """
    if subject.checkpoint is None or (plan.methods and subject is plan.subject):
        return {}
    folder, store = subject.checkpoint.directory, subject.store
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in subject.checkpoint.files]
    files = file_sha256(folder / MANIFEST) if plan.methods else stamps
    run_as = {"config": file_sha256(folder / "config.json"), "dtype": str(store.model.dtype), "device": store.device.type, "batch": plan.layout.batch}
    return {"files": files, **run_as, **versions()}


def accuracy(recipe: Recipe, plan: Plan, subject: Subject, emit: Emit) -> ZeroShotResult | None:
    """Zero-shot accuracy, if the recipe saves it.

    Raises: ModelError if the model does not fit into memory, for lm-evaluation-harness needs all of it.
    """
    if not recipe.output.save_zeroshot:
        return None
    from autoprune.evaluation.tasks import zeroshot

    if not subject.store.resident:
        raise ModelError(
            f"{subject.name} does not fit into memory, so lm-evaluation-harness can't run it; evaluate the saved checkpoint on a larger machine"
        )
    for block in subject.store.anatomy.blocks:
        subject.store.load(block.index)
    return zeroshot(subject.store.model, subject.load_tokenizer(), recipe.zeroshot, batch=plan.layout.batch, emit=emit)  # type: ignore[arg-type]


def count_zeros(store: AnyStore) -> float:
    """Share of zeros in the layers of a model's blocks."""
    zeros = total = 0
    for block in store.anatomy.blocks:
        store.load(block.index)
        zeros += sum(layer.count - int((layer.matrix != 0).sum()) for layer in block.layers)
        total += block.reached
        store.release(block.index)
    return zeros / total if total else 0.0
