"""The Python front door, and the only place where the parts are put together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from autoprune.data.handed import recipe_given, with_data
from autoprune.evaluation.remember import Notes
from autoprune.events import Emit, Heard, Notice, silent
from autoprune.machine.launch import joined, launched
from autoprune.recipe.keywords import Data, EvaluateOptions, PruneOptions, Unpack
from autoprune.recipe.options import EvaluationOptions
from autoprune.recipe.recipe import Recipe
from autoprune.report.progress import following
from autoprune.report.save import check_earlier, check_report_directory, notes_of, save_row, tables_claimed
from autoprune.results.types import Evaluation, EvaluationRow
from autoprune.run.beside import check_beside, moved
from autoprune.run.check import check_values
from autoprune.run.labels import DENSE, labels_of, method_label, report_stem, target_label
from autoprune.run.measure import about, accuracy, check_room, count_zeros, measured
from autoprune.run.open import AnyTokenizer, Subject, chosen_tokenizer, fits, held_model, open_model
from autoprune.run.plan import Plan, check_apart, make_plan
from autoprune.run.prune import prune_and_write
from autoprune.run.result import PruneResult
from autoprune.run.shortage import shortage_told
from autoprune.storage.manifest import Manifest
from autoprune.storage.result import check_target
from autoprune.storage.store import CheckpointStore


def prune(
    model: str | Path | nn.Module,
    *,
    tokenizer: AnyTokenizer | None = None,
    emit: Emit | None = None,
    **options: Unpack[PruneOptions],
) -> PruneResult:
    """Prunes a model: a hub id, a directory, ``"demo"``, or a model in memory, which is changed in place.

    ``options`` are the fields of the recipe, named as the flags are: ``prune_method="wanda", sparsity_ratio=0.5, …``;
    ``eval_data`` given means: measure perplexity, ``compare=True``: the distance from the dense model as well,
    ``tasks``: zero-shot accuracy. Texts are words as on the command line, lists of strings, datasets, or token ids
    (``data/given.py``). A model in memory needs its ``tokenizer``, or the name of one, unless calibration and
    evaluation data are token ids. ``emit`` is called with every event; without it progress is shown in a notebook and
    on a terminal, unless ``quiet``. Raises: AutoPruneError for everything that the user can mend.
    """
    held = model if isinstance(model, nn.Module) else None
    recipe = recipe_given({"model": "" if held is not None else str(model), **options})
    measure = "eval_data" in options or recipe.evaluation.compare or recipe.output.save_ppl is not None
    return run(recipe, emit, model=held, tokenizer=tokenizer, measure=measure)


def evaluate(
    model: str | Path | nn.Module,
    *,
    tokenizer: AnyTokenizer | None = None,
    emit: Emit | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Perplexity of a model as it is, on every text of ``eval_data``, and beside it its accuracy on ``tasks``, if any
    are named.

    Raises: AutoPruneError as ``prune`` does.
    """
    held = model if isinstance(model, nn.Module) else None
    recipe = recipe_given({"model": "" if held is not None else str(model), "sparsity_ratio": 0, **options})
    result = run(recipe, emit, model=held, tokenizer=tokenizer, measure=True)
    return Evaluation(result.row.perplexity, result.row.zeroshot, result.warnings)


def run(
    recipe: Recipe,
    emit: Emit | None = None,
    *,
    model: nn.Module | None = None,
    tokenizer: AnyTokenizer | None = None,
    calibration_data: Data | None = None,
    eval_data: Data | None = None,
    measure: bool | None = None,
) -> PruneResult:
    """Runs a recipe from beginning to end: open, check, prune, write, evaluate, report, delete.

    ``model``, ``calibration_data`` and ``eval_data`` take the place of the recipe's words for them.
    ``measure`` says whether perplexity is wanted; None: if the recipe saves it or names texts, or if nothing is pruned
    and no tasks are measured. Under `torchrun` all processes prune together; then the first one goes on alone, and the
    others' results hold no measurements. Raises: AutoPruneError for everything that the user can mend.
    """
    recipe = with_data(recipe, calibration_data, eval_data)
    here = launched()
    quiet = recipe.run.quiet or (here is not None and not here.first)
    with contextlib.ExitStack() as claims, shortage_told(recipe):
        heard = Heard(claims.enter_context(following(emit, quiet=quiet)))
        claims.enter_context(modes_kept(model))
        result = _run(recipe, heard, claims, model, tokenizer, measure)
    return dataclasses.replace(result, warnings=heard.warnings)


def _run(
    recipe: Recipe,
    emit: Emit,
    claims: contextlib.ExitStack,
    held: nn.Module | None,
    tokenizer: AnyTokenizer | None,
    measure: bool | None,
) -> PruneResult:
    """``run``; ``claims`` keep its tables from being written by others meanwhile."""
    output = recipe.output
    dense_only = recipe.target is None and not recipe.chosen.pruned_model
    if measure is None:
        asked = bool(output.save_ppl) or recipe.evaluation != EvaluationOptions()
        measure = asked or (dense_only and not recipe.zeroshot.tasks)
    with joined() as ranks:
        emit = emit if ranks.first else silent
        if output.save_model and dense_only:
            emit(Notice("--save_model: nothing is pruned at ratio 0, so nothing is written"))
        if ranks.first:
            _check_outputs(recipe, emit)
        resident = None if dense_only else not output.save_model
        chosen = chosen_tokenizer(tokenizer, recipe.model)
        subject = (
            held_model(held, chosen, save=bool(output.save_model))
            if held is not None
            else open_model(recipe, resident=resident, tokenizer=chosen)
        )
        labels = _labels(subject) if dense_only else (method_label(recipe), target_label(recipe.target))
        if ranks.first:
            claims.enter_context(tables_claimed(recipe, report_stem(recipe, labels)))
            check_earlier(recipe, report_stem(recipe, labels), labels)
        if subject.checkpoint:  # a pruned checkpoint is as large as the dense one
            check_room(recipe, subject, resident=subject.store.resident or fits(subject.checkpoint, recipe))
        plan = make_plan(recipe, subject, emit, measure=measure, ranks=ranks)
        ranks.from_first(lambda: _check_measurable(recipe, plan))
        directory = Path(output.save_model) if output.save_model and plan.steps else None
        if plan.steps:
            summary = prune_and_write(recipe, plan, directory, emit)
            row = EvaluationRow(*labels, summary.sparsity, (), recipe.to_dict(), summary, about=about(subject))
        else:
            check_values(subject, emit)
            row = EvaluationRow(*labels, count_zeros(subject.store), (), recipe.to_dict(), about=about(subject))
    if ranks.first:
        row = _evaluated(recipe, plan, row, directory, emit)
        if directory:
            _delete_or_keep(directory, output.delete, emit)
    in_memory = subject.store.model if subject.store.resident else None
    written = directory if directory and directory.is_dir() else None
    return PruneResult(recipe, row, in_memory, written)


def _delete_or_keep(directory: Path, delete: bool, emit: Emit) -> None:
    """The end of a result: what this run's command says, unless an earlier run made it, to be kept."""
    found = Manifest.read(directory)
    if not delete:
        found.keep()
    elif found.is_temporary:
        found.delete()
    else:
        emit(Notice(f"{directory} was made by an earlier run that meant to keep it, so --delete leaves it there"))


def _labels(subject: Subject) -> tuple[str, str]:
    """What a model is called that is only evaluated."""
    return labels_of(subject.checkpoint.directory) if subject.checkpoint else DENSE


def _evaluated(recipe: Recipe, plan: Plan, row: EvaluationRow, directory: Path | None, emit: Emit) -> EvaluationRow:
    """The row with all that the recipe wants measured, saved where it says."""
    after = _reopened(recipe, plan.subject, directory) if plan.evaluation or recipe.zeroshot.tasks else plan.subject
    stem = report_stem(recipe, (row.method, row.target))
    notes = Notes(notes_of(recipe, stem), resume=recipe.output.resume, emit=emit)
    folder = directory.resolve() if directory else None
    row = dataclasses.replace(row, perplexity=measured(plan, after, notes, emit, folder=folder))
    if recipe.evaluation.compare:
        row = dataclasses.replace(row, shifts=moved(recipe, plan, after, notes, emit, folder))
    save_row(recipe, row, stem)  # before the tasks, which take longer and may fail
    if found := accuracy(recipe, plan, after, notes, emit):
        row = dataclasses.replace(row, zeroshot=found)
        save_row(recipe, row, stem)
    notes.forget()
    return row


def _check_outputs(recipe: Recipe, emit: Emit) -> None:
    """Everything about the places of output, and the tasks, that can be known before work begins."""
    output = recipe.output
    if output.save_model:
        check_target(Path(output.save_model), output.overwrite or output.resume)
        check_apart(Path(output.save_model), recipe)
    for flag in ("save_ppl", "save_zeroshot"):
        if directory := getattr(output, flag):
            check_report_directory(Path(directory), flag)
    if recipe.zeroshot.tasks:
        from autoprune.evaluation.tasks import check_tasks

        check_tasks(recipe.zeroshot, emit)


def _check_measurable(recipe: Recipe, plan: Plan) -> None:
    """Everything about what is measured in the end that the model itself may speak against."""
    if recipe.evaluation.compare:
        check_beside(recipe, plan)
    if recipe.zeroshot.apply_chat_template:
        from autoprune.evaluation.tasks import check_template

        check_template(recipe.zeroshot, plan.subject.load_tokenizer())


def _reopened(recipe: Recipe, subject: Subject, directory: Path | None) -> Subject:
    """What is evaluated: the written checkpoint itself, in memory if it fits, or the model pruned in memory."""
    if directory is None or not isinstance(subject.store, CheckpointStore):
        return subject
    subject.store.release_all()
    written = recipe.with_model(str(directory.resolve()))  # by its path: the user's word may be `demo`
    return open_model(written, resident=None, tokenizer=subject.load_tokenizer() if subject.own_tokenizer else None)


@contextlib.contextmanager
def modes_kept(held: nn.Module | None) -> Iterator[None]:
    """A model in memory runs in evaluation mode meanwhile; afterwards every part is in the mode in which it was."""
    modes = [(module, module.training) for module in held.modules()] if held is not None else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
