"""Models against their dense model, from beginning to end: open, see whether they belong together, measure, save."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from autoprune.core.shift import PredictionShift
from autoprune.data.handed import recipe_given
from autoprune.data.windows import Windows
from autoprune.errors import OutputError, RecipeError
from autoprune.evaluation.compare import compare_predictions
from autoprune.evaluation.remember import Notes
from autoprune.events import Emit, Heard, Notice
from autoprune.model.stream import Place
from autoprune.model.walk import walk
from autoprune.recipe.keywords import CompareOptions, Unpack
from autoprune.recipe.recipe import Recipe
from autoprune.report.progress import following
from autoprune.report.save import check_report_directory
from autoprune.results.codec import dump_json, first_difference
from autoprune.results.comparison import Comparison, Flips, ModelComparison, shift_from_json
from autoprune.results.comparison_tables import comparison_text
from autoprune.run.api import modes_kept
from autoprune.run.check import check_replay, check_values
from autoprune.run.compare_memory import fitted
from autoprune.run.kinship import check_alike, check_descent, shortest_context
from autoprune.run.measure import check_room
from autoprune.run.memory import Layout
from autoprune.run.open import AnyTokenizer, Subject, chosen_tokenizer, fits, held_model, open_model
from autoprune.run.plan import choose_seqlen, make_plan
from autoprune.run.texts import source_name
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.files import file_sha256
from autoprune.storage.locate import locate
from autoprune.storage.manifest import versions

Model = str | Path | nn.Module
STEM = "comparison"


@dataclass(frozen=True)
class _Run:
    """What is compared, and how."""

    recipe: Recipe
    dense: Subject
    others: Mapping[str, Subject]  # by the name in the tables
    fingerprints: Mapping[str, str]  # by the subject's name: of all weights
    windows: Mapping[str, Windows]
    layout: Layout
    emit: Emit

    @property
    def subjects(self) -> list[Subject]:
        """All models, the dense one first."""
        return [self.dense, *self.others.values()]


def compare(
    dense: Model,
    pruned: Model | Sequence[Model],
    *,
    tokenizer: AnyTokenizer | None = None,
    unrelated: bool = False,
    save: str | Path | None = None,
    emit: Emit | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """How far pruned models are from the dense one: divergence of their predictions, and flipped answers on tasks.

    Models are hub ids, directories, ``"demo"``, or models in memory (which need their ``tokenizer`` unless texts are
    token ids). ``options`` are those of the recipe: ``eval_data``, ``seqlen``, ``tasks``, ``dtype``, ``memory``, …;
    without ``eval_data`` but with ``tasks`` only flips are counted. ``unrelated``: go on with models of which one was
    not pruned from the other. ``save``: a directory for ``comparison.json`` and ``.txt``, where ``resume`` takes up
    what a stopped run has measured.
    Raises: AutoPruneError for everything that the user can mend.
    """
    models = [pruned] if isinstance(pruned, (str, Path, nn.Module)) else list(pruned)
    if not models:
        raise RecipeError("there is nothing to compare the dense model with; give at least one other model")
    word = "" if isinstance(dense, nn.Module) else str(dense)
    recipe = recipe_given({"model": word, "sparsity_ratio": 0, **options})
    choices = {"texts": "eval_data" in options or not recipe.zeroshot.tasks, "unrelated": unrelated}
    said = _settings(recipe, word or "a model in memory", names := _names(models)) | choices
    directory = Path(save).expanduser() if save is not None else None
    if directory:
        _check_place(directory, said, replace=recipe.output.overwrite or recipe.output.resume)
    with contextlib.ExitStack() as stack:
        heard = Heard(stack.enter_context(following(emit, quiet=recipe.run.quiet)))
        if recipe.zeroshot.tasks:
            from autoprune.evaluation.tasks import check_choices, check_tasks

            check_tasks(recipe.zeroshot, heard)
            check_choices(recipe.zeroshot)
        for model in (dense, *models):
            stack.enter_context(modes_kept(model if isinstance(model, nn.Module) else None))
        chosen = chosen_tokenizer(tokenizer, recipe.model)
        run = _opened(recipe, [dense, *models], names, chosen, heard, **choices)
        result = _measured(run, said, directory)
    return dataclasses.replace(result, warnings=heard.warnings)


def _measured(run: _Run, said: Mapping[str, Any], directory: Path | None) -> Comparison:
    """All that was asked for, saved where it was asked for."""
    notes = Notes(directory / f"{STEM}.unfinished.json" if directory else None, resume=run.recipe.output.resume)
    shifts = {text: _shifts(run, text, notes, directory) for text in run.windows}
    flips = _flips(run) if run.recipe.zeroshot.tasks else {}
    found = tuple(
        ModelComparison(name, {text: by_model[name] for text, by_model in shifts.items()}, flips.get(name, ()))
        for name in run.others
    )
    measured = {"windows": {text: windows.provenance for text, windows in run.windows.items()}, **versions()}
    result = Comparison(run.dense.name, found, {**said, "measured": measured})
    if directory:
        _save(directory, result)
        notes.forget()
    return result


def _opened(
    recipe: Recipe,
    models: Sequence[Model],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    emit: Emit,
    *,
    texts: bool,
    unrelated: bool,
) -> _Run:
    """Opens all models, sees whether they belong together, and cuts the windows.

    Raises: ModelError if they can't be compared, or if weights are NaN or infinite.
    """
    options = [recipe.with_model(str(m)).model for m in models if not isinstance(m, nn.Module)]
    on_disk = [Checkpoint.open(locate(o.model, o.cache_dir, o.revision)) for o in options]
    resident = not on_disk or fits(on_disk[0], recipe, *on_disk[1:])
    subjects = [
        held_model(model, tokenizer)
        if isinstance(model, nn.Module)
        else open_model(recipe.with_model(str(model)), resident=resident, tokenizer=tokenizer)
        for model in models
    ]
    dense, *others = subjects
    check_room(recipe, dense, resident=resident)
    for other in others:
        check_alike(dense, other, unrelated=unrelated)
    if (context := shortest_context(subjects)) is not None:
        seqlen = choose_seqlen(recipe, context)
        recipe = dataclasses.replace(recipe, calibration=dataclasses.replace(recipe.calibration, seqlen=seqlen))
    unbound = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, memory=None))  # memory is planned below
    plan = make_plan(unbound, dense, emit, measure=texts)
    layout = fitted(plan.layout, recipe, subjects, list(plan.evaluation.values()), emit)
    fingerprints = {subject.name: check_values(subject, emit) for subject in subjects}
    for other in others if not unrelated else ():
        check_descent(dense, fingerprints[dense.name], other)
    for subject in subjects:
        if plan.evaluation and not subject.store.resident:
            check_replay(subject, next(iter(plan.evaluation.values())).ids, emit)
    return _Run(recipe, dense, dict(zip(names, others, strict=True)), fingerprints, plan.evaluation, layout, emit)


def _shifts(run: _Run, text: str, notes: Notes, directory: Path | None) -> dict[str, PredictionShift]:
    """Every model on one text; what was noted before is not measured again."""
    windows = run.windows[text]
    keys = {name: _key(run, subject, windows) for name, subject in run.others.items()}
    kept = {name: note for name, key in keys.items() if key and (note := notes.find(key))}
    for name in kept:
        run.emit(Notice(f"{name} on {text}: measured before"))
    missing = {name: subject.store for name, subject in run.others.items() if name not in kept}
    found = {name: shift_from_json(note) for name, note in kept.items()}
    if missing:
        layout = run.layout
        place = Place(layout.activations, run.dense.store.device, directory.resolve() if directory else None)
        if layout.activations == "disk" and directory:
            directory.mkdir(parents=True, exist_ok=True)
        measured = compare_predictions(
            run.dense.store, missing, windows, text, batch=layout.batch, place=place, emit=run.emit
        )
        for name, shift in measured.items():
            if keys[name]:
                notes.add(keys[name], shift)
        found |= measured
    return found


def _key(run: _Run, subject: Subject, windows: Windows) -> dict[str, object]:
    """What a shift depends on; empty for models in memory, which can't be told from others."""
    both = (run.dense, subject)
    if any(model.checkpoint is None for model in both):
        return {}
    configs = [file_sha256(model.checkpoint.directory / "config.json") for model in both if model.checkpoint]
    store = run.dense.store
    run_as = {"dtype": str(store.model.dtype), "device": store.device.type, "batch": run.layout.batch}
    weights = [run.fingerprints[model.name] for model in both]
    return {"weights": weights, "configs": configs, "windows": windows.fingerprint, **run_as, **versions()}


def _flips(run: _Run) -> dict[str, tuple[Flips, ...]]:
    """Every model's answers against the dense model's, which are asked for once."""
    from autoprune.evaluation.flips import flips_of_runs
    from autoprune.evaluation.tasks import run_harness

    logs = []
    for subject in run.subjects:
        for _ in walk(subject.store):
            pass  # a resident store keeps what it has loaded
        tokenizer = run.dense.load_tokenizer()
        model: Any = subject.store.model
        log, _ = run_harness(model, tokenizer, run.recipe.zeroshot, batch=run.layout.batch, emit=run.emit)
        logs.append(log)
    return {name: flips_of_runs(logs[0], log) for name, log in zip(run.others, logs[1:], strict=True)}


def _names(models: Sequence[Model]) -> list[str]:
    """What the models are called in tables: the last part of a path where that tells them apart."""
    words = ["model in memory" if isinstance(model, nn.Module) else str(model) for model in models]
    short = ["demo" if word == "demo" else source_name(word) for word in words]
    names = [brief if short.count(brief) == 1 else word for brief, word in zip(short, words, strict=True)]
    return [name if names.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(names)]


def _settings(recipe: Recipe, dense: str, names: Sequence[str]) -> dict[str, Any]:
    """What was asked for."""
    asked = recipe.to_dict()
    groups = {group: asked[group] for group in ("model", "evaluation", "zeroshot")}
    return {"dense": dense, "models": list(names), "seqlen": recipe.calibration.seqlen, **groups}


def _check_place(directory: Path, said: Mapping[str, Any], *, replace: bool) -> None:
    """Raises: OutputError if the result can't be written, or if there is one of another comparison already."""
    check_report_directory(directory, "save")
    record = directory / f"{STEM}.json"
    if replace or not record.exists():
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))["settings"]
        before.pop("measured")
        difference = first_difference(before, json.loads(dump_json(said)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        difference = f"it can't be read ({error})"
    if difference:
        raise OutputError(
            f"--save {directory}: {record.name} there is of another comparison: {difference}; choose another"
            " directory, or replace it with --overwrite"
        )


def _save(directory: Path, result: Comparison) -> None:
    text = comparison_text(result, places=True) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for ending, content in ((".json", dump_json(result)), (".txt", text)):
            draft = directory / f"{STEM}{ending}.writing"
            draft.write_text(content, encoding="utf-8")
            draft.replace(directory / f"{STEM}{ending}")
    except OSError as error:
        raise OutputError(
            f"--save {directory}: can't write there ({error}); what should have been written:\n{text}"
        ) from error
