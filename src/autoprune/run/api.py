"""The Python front door, and the only place where the parts are put together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.data.handed import recipe_given, with_data
from autoprune.errors import RecipeError
from autoprune.events import Emit, Heard, Notice, silent
from autoprune.machine.allocator import restored
from autoprune.machine.launch import joined, launched
from autoprune.machine.meter import Clock, forget_peaks
from autoprune.recipe.checks import model_word, short
from autoprune.recipe.commands import EVALUATE
from autoprune.recipe.keywords import Data, EvaluateOptions, PruneOptions, Unpack
from autoprune.recipe.options import EvaluationOptions
from autoprune.recipe.recipe import Recipe
from autoprune.report.progress import following
from autoprune.report.save import check_earlier, check_report_directory, tables_claimed
from autoprune.results.types import Evaluation, EvaluationRow
from autoprune.results.variants import DENSE
from autoprune.run.before import Before
from autoprune.run.beside import check_beside
from autoprune.run.check import check_values
from autoprune.run.closing import delete_or_keep, evaluated
from autoprune.run.labels import labels_of, method_label, report_stem, target_label
from autoprune.run.measure import about, check_room, count_zeros
from autoprune.run.open import AnyTokenizer, Subject, chosen_tokenizer, fits, held_model, open_model
from autoprune.run.plan import Plan, check_apart, make_plan
from autoprune.run.prune import prune_and_write
from autoprune.run.result import PruneResult
from autoprune.run.shortage import shortage_told
from autoprune.storage.result import check_target


def prune(
    model: str | Path | nn.Module,
    *,
    tokenizer: AnyTokenizer | None = None,
    emit: Emit | None = None,
    **options: Unpack[PruneOptions],
) -> PruneResult:
    """Prunes a model: a hub id, a directory, ``"demo"``, or a model in memory, which is changed in place.

    ``options`` are the fields of the recipe, named as the flags are: ``prune_method="wanda", sparsity_ratio=0.5, …``;
    ``eval_data`` given, and not None, means: measure perplexity, ``compare=True``: the distance from the dense model,
    ``tasks``: zero-shot accuracy. Texts are words as on the command line, lists of strings, datasets, or token ids
    (``data/given.py``). A model in memory needs its ``tokenizer``, or the name of one, unless calibration and
    evaluation data are token ids. ``emit`` is called with every event; without it progress is shown in a notebook and
    on a terminal, unless ``quiet``. Raises: AutoPruneError for everything that the user can mend.
    """
    held, word = _held_or_word(model)
    recipe = recipe_given({"model": word, **options})
    texts = wants_texts(recipe, options, otherwise=False)
    measure = texts or recipe.evaluation.compare or recipe.output.save_ppl is not None
    return run(recipe, emit, model=held, tokenizer=tokenizer, measure=measure)


def evaluate(
    model: str | Path | nn.Module,
    *,
    tokenizer: AnyTokenizer | None = None,
    emit: Emit | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Perplexity of a model as it is, on every text of ``eval_data``, and beside it its accuracy on ``tasks``, if any
    are named; with ``eval_data=None`` accuracy alone.

    Raises: AutoPruneError as ``prune`` does.
    """
    EVALUATE.check(options)
    held, word = _held_or_word(model)
    recipe = recipe_given({"model": word, "sparsity_ratio": 0, **options})
    texts = wants_texts(recipe, options, otherwise=True)
    if not texts and not recipe.zeroshot.tasks:
        raise RecipeError("nothing is to be measured: eval_data is None, and no tasks are named; give one of them")
    result = run(recipe, emit, model=held, tokenizer=tokenizer, measure=texts)
    return Evaluation(result.row.perplexity, result.row.zeroshot, result.warnings)


@restored()
def run(
    recipe: Recipe,
    emit: Emit | None = None,
    *,
    model: str | Path | nn.Module | None = None,
    tokenizer: AnyTokenizer | None = None,
    calibration_data: Data | None = None,
    eval_data: Data | None = None,
    measure: bool | None = None,
    dense: bool = True,
) -> PruneResult:
    """Runs a recipe from beginning to end: open, check, prune, write, evaluate, report, delete.

    ``model``, ``calibration_data`` and ``eval_data`` take the place of the recipe's words for them.
    ``measure`` says whether perplexity is wanted; None: if the recipe saves it or names texts, or if nothing is pruned
    and no tasks are measured. Then the dense model's is set beside it, unless ``dense`` is False or the recipe says
    ``no_dense``: from the user's cache where it was measured before, else measured. Under `torchrun` all processes
    prune together; then the first one goes on alone, and the others' results hold no measurements.
    Raises: AutoPruneError for everything that the user can mend.
    """
    if not isinstance(recipe, Recipe):  # callers in Python have no type checker to stop them
        raise RecipeError(
            f"run takes a Recipe and was given {short(recipe)}; make one: Recipe.of(model=…, …) or Recipe.read(path)"
        )
    recipe = with_data(recipe, calibration_data, eval_data)
    _check_measure(recipe, measure, texts=eval_data is not None)
    held, word = (None, "") if model is None else _held_or_word(model)
    recipe = recipe.with_model(word) if word else recipe
    if held is not None and recipe.model.revision and not isinstance(tokenizer, (str, Path)):
        raise RecipeError(
            f"--revision {recipe.model.revision}: only models on the hub have revisions, and this one is in memory;"
            " leave --revision out"
        )
    here = launched()
    quiet = recipe.run.quiet or (here is not None and not here.first)
    with contextlib.ExitStack() as claims, shortage_told(recipe):
        heard = Heard(claims.enter_context(following(emit, quiet=quiet)))
        claims.enter_context(modes_kept(held))
        forget_peaks()
        clock = Clock(heard, "opening")
        result = _run(recipe, clock, claims, held, tokenizer, measure, dense=dense and not recipe.run.no_dense)
    return dataclasses.replace(result, warnings=heard.warnings)


def _run(
    recipe: Recipe,
    clock: Clock,
    claims: contextlib.ExitStack,
    held: nn.Module | None,
    tokenizer: AnyTokenizer | None,
    measure: bool | None,
    *,
    dense: bool,
) -> PruneResult:
    """``run``; ``claims`` keep its tables from being written by others meanwhile."""
    output = recipe.output
    dense_only = recipe.target is None and not recipe.chosen.pruned_model
    if measure is None:
        asked = bool(output.save_ppl) or recipe.evaluation != EvaluationOptions()
        measure = asked or (dense_only and not recipe.zeroshot.tasks)
    with joined() as ranks:
        emit: Emit = clock if ranks.first else silent
        if ranks.first:
            _check_outputs(recipe, emit, dense_only=dense_only)
        resident = None if dense_only else not output.save_model
        chosen = chosen_tokenizer(tokenizer, recipe.model)
        subject = (
            held_model(held, chosen, recipe.model, save=bool(output.save_model))
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
        before = Before(recipe, plan, emit, wanted=dense)
        if plan.steps:
            summary = prune_and_write(recipe, plan, directory, emit, before.checked)
            row = EvaluationRow(*labels, summary.sparsity, (), recipe.to_dict(), summary, about=about(subject))
        else:
            before.checked({"model": {"fingerprint": check_values(subject, emit)}})
            row = EvaluationRow(*labels, count_zeros(subject.store), (), recipe.to_dict(), about=about(subject))
    if ranks.first:
        row = evaluated(recipe, plan, row, directory, before, clock)
        if directory:
            delete_or_keep(directory, output.delete, emit)
    in_memory = subject.store.model if subject.store.resident else None
    return PruneResult(recipe, row, in_memory, directory if directory and directory.is_dir() else None)


def _held_or_word(model: str | Path | nn.Module) -> tuple[nn.Module | None, str]:
    """A model in memory, or the word for one. Raises: RecipeError for anything else."""
    return (model, "") if isinstance(model, nn.Module) else (None, model_word(model))


def wants_texts(recipe: Recipe, options: Mapping[str, Any], *, otherwise: bool) -> bool:
    """Whether perplexity or distance is to be measured on texts: not if ``eval_data`` is given as None.

    Raises: RecipeError if that contradicts another option.
    """
    wanted = options["eval_data"] is not None if "eval_data" in options else otherwise
    other = "compare" if recipe.evaluation.compare else "save_ppl" if recipe.output.save_ppl else None
    if "eval_data" in options and not wanted and other:
        raise RecipeError(f"eval_data is None, so no text is measured, and --{other} needs one; leave out one of them")
    return wanted


def _check_measure(recipe: Recipe, measure: bool | None, *, texts: bool) -> None:
    """Raises: RecipeError if texts are not to be measured, and something that was asked for needs it."""
    needs = {"--save_ppl": recipe.output.save_ppl, "--compare": recipe.evaluation.compare, "eval_data": texts}
    if measure is False and (needing := next((name for name, needed in needs.items() if needed), None)):
        raise RecipeError(f"measure is False, so no text is measured, which {needing} is for; leave out one of them")


def _labels(subject: Subject) -> tuple[str, str]:
    """What a model is called that is only evaluated."""
    return labels_of(subject.checkpoint.directory) if subject.checkpoint else DENSE


def _check_outputs(recipe: Recipe, emit: Emit, *, dense_only: bool) -> None:
    """Everything about the places of output, and the tasks, that can be known before work begins."""
    output = recipe.output
    if output.resume and not (output.save_model or output.save_ppl or output.save_zeroshot):
        raise RecipeError(
            "--resume goes on with what a stopped run has left where it saves, and nothing is saved; give the"
            " --save_model, --save_ppl or --save_zeroshot of that run, or leave out --resume"
        )
    if output.save_model and dense_only:
        emit(Notice("--save_model: nothing is pruned at ratio 0, so nothing is written"))
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


@contextlib.contextmanager
def modes_kept(held: nn.Module | None) -> Iterator[None]:
    """A model in memory runs in evaluation mode meanwhile; afterwards every part is in the mode in which it was."""
    modes = [(module, module.training) for module in held.modules()] if held is not None else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
