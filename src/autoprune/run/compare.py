"""Models against their dense model, from beginning to end: open, see whether they belong together, measure, save."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from autoprune.data.handed import recipe_given
from autoprune.errors import OutputError, RecipeError
from autoprune.evaluation.remember import Notes
from autoprune.events import Emit, Heard
from autoprune.machine.allocator import restored
from autoprune.model.walk import walk
from autoprune.recipe.checks import model_word, place_word
from autoprune.recipe.commands import COMPARE
from autoprune.recipe.keywords import CompareOptions, Unpack
from autoprune.recipe.recipe import Recipe
from autoprune.report.distance_page import render_comparison
from autoprune.report.needs import check_pages
from autoprune.report.progress import following
from autoprune.report.save import check_report_directory, claimed
from autoprune.results.codec import dump_json, first_difference
from autoprune.results.comparison import STEM, Comparison, Flips, ModelComparison
from autoprune.results.comparison_tables import comparison_text
from autoprune.run.api import modes_kept, wants_texts
from autoprune.run.beside import SideBySide
from autoprune.run.check import check_replay, check_values
from autoprune.run.compare_memory import fitted
from autoprune.run.kinship import check_alike, check_descent, shortest_context
from autoprune.run.labels import names_apart
from autoprune.run.measure import about, check_room
from autoprune.run.open import AnyTokenizer, Subject, chosen_tokenizer, fits, held_model, open_model
from autoprune.run.plan import choose_seqlen, make_plan
from autoprune.run.shortage import shortage_told
from autoprune.storage.identity import described_by, files_of
from autoprune.storage.locate import locate
from autoprune.storage.manifest import versions
from autoprune.storage.source import open_checkpoint

Model = str | Path | nn.Module


@restored()
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
    not pruned from the other. ``save``: a directory for ``comparison.json``, ``.txt`` and ``.html``, where ``resume``
    takes up what a stopped run has measured.
    Raises: AutoPruneError for everything that the user can mend.
    """
    COMPARE.check(options)
    several: Any = pruned if isinstance(pruned, Iterable) and not isinstance(pruned, (str, nn.Module)) else [pruned]
    models: list[Model] = [model if isinstance(model, nn.Module) else model_word(model) for model in several]
    if not models:
        raise RecipeError("there is nothing to compare the dense model with; give at least one other model")
    word = "" if isinstance(dense, nn.Module) else model_word(dense)
    recipe = recipe_given({"model": word, "sparsity_ratio": 0, **options})
    texts = wants_texts(recipe, options, otherwise=not recipe.zeroshot.tasks)
    if not texts and not recipe.zeroshot.tasks:
        raise RecipeError("nothing is to be compared: eval_data is None, and no tasks are named; give one of them")
    choices = {"texts": texts, "unrelated": unrelated}
    said = _settings(recipe, word or "a model in memory", names := _names(models)) | choices
    directory = place_word(save, "save") if save is not None else None
    if recipe.output.resume and not directory:
        raise RecipeError("--resume goes on beside --save, and nothing is saved; give --save, or leave out --resume")
    with contextlib.ExitStack() as stack, shortage_told(recipe):
        if directory:
            check_pages(f"--save {directory}")
            stack.enter_context(claimed("save", directory, STEM))
            _check_place(directory, said, replace=recipe.output.overwrite)
        heard = Heard(stack.enter_context(following(emit, quiet=recipe.run.quiet)))
        if recipe.zeroshot.tasks:
            from autoprune.evaluation.tasks import check_choices, check_tasks

            check_tasks(recipe.zeroshot, heard)
            check_choices(recipe.zeroshot)
        for model in (dense, *models):
            stack.enter_context(modes_kept(model if isinstance(model, nn.Module) else None))
        run = _opened(recipe, [dense, *models], names, chosen_tokenizer(tokenizer, recipe.model), heard, **choices)
        result = _measured(recipe, run, said, directory)
    return dataclasses.replace(result, warnings=heard.warnings)


def _measured(recipe: Recipe, run: SideBySide, said: Mapping[str, Any], directory: Path | None) -> Comparison:
    """All that was asked for, saved where it was asked for."""
    notes = Notes(directory / f"{STEM}.unfinished.json" if directory else None, resume=recipe.output.resume)
    shifts = {text: run.shifts(text, notes, directory) for text in run.windows}
    flips = _flips(recipe, run, notes) if recipe.zeroshot.tasks else {}
    found = tuple(
        ModelComparison(name, {text: by_model[name] for text, by_model in shifts.items()}, flips.get(name, ()))
        for name in run.others
    )
    windows = {text: windows.provenance for text, windows in run.windows.items()}
    measured = {"windows": windows, "about": dataclasses.asdict(about(run.dense))}
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
) -> SideBySide:
    """Opens all models, sees whether they belong together, and cuts the windows.

    Raises: ModelError if they can't be compared, or if weights are NaN or infinite.
    """
    options = [recipe.with_model(str(m)).model for m in models if not isinstance(m, nn.Module)]
    on_disk = [open_checkpoint(locate(o.model, o.cache_dir, o.revision)) for o in options]
    resident = not on_disk or fits(on_disk[0], recipe, *on_disk[1:])
    subjects = [
        held_model(model, tokenizer, recipe.model)
        if isinstance(model, nn.Module)
        else open_model(recipe.with_model(str(model)), resident=resident, tokenizer=tokenizer)
        for model in models
    ]
    dense, *others = subjects
    check_room(recipe, dense, resident=resident)
    for other in others:
        check_alike(dense, other, emit, unrelated=unrelated)
    if (context := shortest_context(subjects)) is not None:
        seqlen = choose_seqlen(recipe, context)
        recipe = dataclasses.replace(recipe, calibration=dataclasses.replace(recipe.calibration, seqlen=seqlen))
    unbound = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, memory=None))  # memory is planned below
    plan = make_plan(unbound, dense, emit, measure=texts)
    layout = fitted(
        plan.layout, recipe, [(s, s.store.resident) for s in subjects], list(plan.evaluation.values()), emit
    )
    fingerprints = [check_values(subject, emit) for subject in subjects]
    for other, fingerprint in zip(others, fingerprints[1:], strict=True) if not unrelated else ():
        check_descent(dense, fingerprints[0], other, fingerprint, emit)
    for subject in subjects:
        if plan.evaluation and not subject.store.resident:
            check_replay(subject, next(iter(plan.evaluation.values())).ids, emit)
    first, *rest = (_identity(s, weights, layout.batch) for s, weights in zip(subjects, fingerprints, strict=True))
    others_known = dict(zip(names, rest, strict=True))
    by_name = dict(zip(names, others, strict=True))
    return SideBySide(dense, first, by_name, others_known, plan.evaluation, layout, emit)


def _identity(subject: Subject, weights: str, batch: int) -> dict[str, object]:
    """What a model's figures depend on besides texts and tasks; empty for one in memory, which can't be told from
    others.
    """
    if subject.checkpoint is None:
        return {}
    directory, model = subject.checkpoint.directory, subject.store.model
    what = {"weights": weights, **described_by(directory, model), "beside": files_of(directory)}
    return {**what, "dtype": str(model.dtype), "device": subject.store.device.type, "batch": batch, **versions()}


def _flips(recipe: Recipe, run: SideBySide, notes: Notes) -> dict[str, tuple[Flips, ...]]:
    """Every model's answers against the dense model's, which are asked for once."""
    from autoprune.evaluation.flips import flips
    from autoprune.evaluation.tasks import zeroshot

    found = []
    for subject, known in (
        (run.dense, run.dense_known),
        *((run.others[name], run.known[name]) for name in run.others),
    ):
        for _ in walk(subject.store):
            pass  # a resident store keeps what it has loaded
        tokenizer = run.dense.load_tokenizer()
        model: Any = subject.store.model
        result = zeroshot(
            model, tokenizer, recipe.zeroshot, batch=run.layout.batch, emit=run.emit, notes=notes, known=known
        )
        found.append(result.tasks)
    return {name: flips(found[0], tasks) for name, tasks in zip(run.others, found[1:], strict=True)}


def _names(models: Sequence[Model]) -> list[str]:
    """What the models are called in tables: the last part of a path where that tells them apart."""
    return names_apart(["model in memory" if isinstance(model, nn.Module) else model_word(model) for model in models])


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
        for ending, content in ((".json", dump_json(result)), (".txt", text), (".html", render_comparison(result))):
            draft = directory / f"{STEM}{ending}.writing"
            draft.write_text(content, encoding="utf-8")
            draft.replace(directory / f"{STEM}{ending}")
    except OSError as error:
        raise OutputError(
            f"--save {directory}: can't write there ({error}); what should have been written:\n{text}"
        ) from error
