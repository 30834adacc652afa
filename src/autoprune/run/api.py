"""The Python front door, and the only place where the parts are put together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from autoprune.events import Emit, Notice, silent
from autoprune.machine.allocator import restored
from autoprune.machine.launch import joined
from autoprune.machine.meter import Clock, forget_peaks
from autoprune.recipe.options import EvaluationOptions
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.report.save import check_earlier, check_report_directory, tables_claimed
from autoprune.results.comparison import Comparison, comparison_of
from autoprune.results.types import Evaluation, EvaluationRow, PruningSummary
from autoprune.results.variants import DENSE
from autoprune.run.before import Before
from autoprune.run.beside import check_beside
from autoprune.run.check import check_values
from autoprune.run.closing import delete_or_keep, evaluated
from autoprune.run.labels import labels_of, method_label, report_stem, target_label
from autoprune.run.measure import about, check_room, count_zeros
from autoprune.run.open import Subject, fits, held_model, open_model
from autoprune.run.plan import Plan, check_apart, make_plan
from autoprune.run.prune import prune_and_write
from autoprune.run.shortage import shortage_told
from autoprune.storage.result import check_target

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class PruneResult:
    """What a run did. ``model`` is the pruned model where it is in memory, ``directory`` the checkpoint that was
    written.
    """

    recipe: Recipe
    row: EvaluationRow
    model: nn.Module | None = None
    directory: Path | None = None

    @property
    def summary(self) -> PruningSummary | None:
        """Per-layer outcomes; None when only the dense model was evaluated."""
        return self.row.pruning

    @property
    def perplexity(self) -> dict[str, float]:
        """Perplexity by evaluation text."""
        return {result.source: result.perplexity for result in self.row.perplexity}

    @property
    def comparison(self) -> Comparison | None:
        """How far predictions are from the dense model's; None unless ``compare`` asked for it."""
        return comparison_of(self.row) if self.row.shifts else None

    def to_pandas(self) -> DataFrame:
        """What became of every layer, one line each; no line where nothing was pruned."""
        return (self.summary or PruningSummary(())).to_pandas()


def prune(
    model: str | Path | nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    emit: Emit = silent,
    **options: Any,
) -> PruneResult:
    """Prunes a model: a hub id, a directory, ``"demo"``, or a model in memory, which is changed in place.

    ``options`` are the fields of the recipe, named as the flags are: ``prune_method="wanda", sparsity_ratio=0.5, …``;
    ``eval_data`` given means: measure perplexity, ``compare=True``: the distance from the dense model as well,
    ``tasks``: zero-shot accuracy. A model in memory needs its
    ``tokenizer`` unless calibration and evaluation data are token ids. Raises: AutoPruneError for everything that the
    user can mend.
    """
    held = model if isinstance(model, nn.Module) else None
    recipe = recipe_from_flat({"model": "" if held is not None else str(model), **options})
    with modes_kept(held):
        return run(
            recipe,
            emit,
            held=held,
            tokenizer=tokenizer,
            measure="eval_data" in options or recipe.evaluation.compare or recipe.output.save_ppl is not None,
        )


def evaluate(
    model: str | Path | nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    emit: Emit = silent,
    **options: Any,
) -> Evaluation:
    """Perplexity of a model as it is, on every text of ``eval_data``, and beside it its accuracy on ``tasks``, if any
    are named.

    Raises: AutoPruneError as ``prune`` does.
    """
    held = model if isinstance(model, nn.Module) else None
    recipe = recipe_from_flat({"model": "" if held is not None else str(model), "sparsity_ratio": 0, **options})
    with modes_kept(held):
        row = run(recipe, emit, held=held, tokenizer=tokenizer, measure=True).row
    return Evaluation(row.perplexity, row.zeroshot)


@restored()
def run(
    recipe: Recipe,
    emit: Emit = silent,
    *,
    held: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    measure: bool | None = None,
    dense: bool = True,
) -> PruneResult:
    """Runs a recipe from beginning to end: open, check, prune, write, evaluate, report, delete.

    ``measure`` says whether perplexity is wanted; None: if the recipe saves it or names texts, or if nothing else
    would come out. Then the dense model's is set beside it, unless ``dense`` is False or the recipe says ``no_dense``:
    from the user's cache where it was measured before, else measured. Under `torchrun` all processes prune together;
    then the first one goes on alone, and the others' results hold no measurements.
    """
    with contextlib.ExitStack() as claims, shortage_told(recipe):
        forget_peaks()
        clock = Clock(emit, "opening")
        return _run(recipe, clock, claims, held, tokenizer, measure, dense=dense and not recipe.run.no_dense)


def _run(
    recipe: Recipe,
    clock: Clock,
    claims: contextlib.ExitStack,
    held: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase | None,
    measure: bool | None,
    *,
    dense: bool,
) -> PruneResult:
    """``run``; ``claims`` keep its tables from being written by others meanwhile."""
    output = recipe.output
    dense_only = recipe.target is None and not recipe.chosen.pruned_model
    if measure is None:
        asked = bool(output.save_ppl) or recipe.evaluation != EvaluationOptions()
        measure = asked or not (recipe.zeroshot.tasks or (output.save_model and not dense_only))
    with joined() as ranks:
        emit: Emit = clock if ranks.first else silent
        if output.save_model and dense_only:
            emit(Notice("--save_model: nothing is pruned at ratio 0, so nothing is written"))
        if ranks.first:
            _check_outputs(recipe, emit)
        resident = None if dense_only else not output.save_model
        subject = (
            held_model(held, tokenizer, save=bool(output.save_model))
            if held is not None
            else open_model(recipe, resident=resident)
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


def _labels(subject: Subject) -> tuple[str, str]:
    """What a model is called that is only evaluated."""
    return labels_of(subject.checkpoint.directory) if subject.checkpoint else DENSE


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


@contextlib.contextmanager
def modes_kept(held: nn.Module | None) -> Iterator[None]:
    """A model in memory runs in evaluation mode meanwhile; afterwards every part is in the mode in which it was."""
    modes = [(module, module.training) for module in held.modules()] if held is not None else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
