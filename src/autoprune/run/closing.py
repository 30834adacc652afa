"""The end of a run: the result is measured, set beside the dense model, saved, and perhaps deleted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autoprune.evaluation.remember import Notes
from autoprune.events import Emit, Notice
from autoprune.machine.meter import Clock, device_bytes, peak_bytes
from autoprune.recipe.recipe import Recipe
from autoprune.report.save import notes_of, save_row
from autoprune.results.types import Cost, EvaluationRow
from autoprune.run.before import Before
from autoprune.run.beside import moved
from autoprune.run.labels import report_stem
from autoprune.run.measure import accuracy, measured
from autoprune.run.open import Subject, open_model
from autoprune.run.plan import Plan
from autoprune.storage.manifest import Manifest
from autoprune.storage.size import file_size
from autoprune.storage.store import CheckpointStore


def evaluated(
    recipe: Recipe, plan: Plan, row: EvaluationRow, directory: Path | None, before: Before, clock: Clock
) -> EvaluationRow:
    """The row with all that the recipe wants measured, saved where it says."""
    folder = directory.resolve() if directory else None
    if folder and folder.is_dir():
        row = dataclasses.replace(row, size=file_size(folder))
    before.measure(lambda: _opened(recipe, plan.subject), folder)
    after = reopened(recipe, plan.subject, folder) if plan.evaluation or recipe.zeroshot.tasks else plan.subject
    stem = report_stem(recipe, (row.method, row.target))
    notes = Notes(notes_of(recipe, stem), resume=recipe.output.resume, emit=clock)
    row = dataclasses.replace(row, perplexity=measured(plan, after, notes, before.memory, clock, folder))
    if recipe.evaluation.compare:
        row = dataclasses.replace(row, shifts=moved(recipe, plan, after, notes, clock, folder))
    row = dataclasses.replace(row, beside=before.of(row), cost=_cost(clock))
    save_row(recipe, row, stem)  # before the tasks, which take longer and may fail
    if found := accuracy(recipe, plan, after, notes, clock):
        row = dataclasses.replace(row, zeroshot=found, cost=_cost(clock))
        save_row(recipe, row, stem)
    notes.forget()
    return row


def delete_or_keep(directory: Path, delete: bool, emit: Emit) -> None:
    """The end of a result: what this run's command says, unless an earlier run made it, to be kept."""
    found = Manifest.read(directory)
    if not delete:
        found.keep()
    elif found.is_temporary:
        found.delete()
    else:
        emit(Notice(f"{directory} was made by an earlier run that meant to keep it, so --delete leaves it there"))


def _cost(clock: Clock) -> Cost:
    """What the run has taken so far."""
    return Cost(clock.seconds, peak_bytes(), device_bytes(), clock.so_far)


def _opened(recipe: Recipe, subject: Subject) -> Subject:
    """The dense model anew, in memory if it fits there: the run has pruned it block by block."""
    assert isinstance(subject.store, CheckpointStore)
    subject.store.release_all()
    tokenizer = subject.load_tokenizer() if subject.own_tokenizer else None
    return open_model(recipe, resident=None, tokenizer=tokenizer)


def reopened(recipe: Recipe, subject: Subject, directory: Path | None) -> Subject:
    """What is evaluated: the written checkpoint itself, in memory if it fits, or the model pruned in memory."""
    if directory is None or not isinstance(subject.store, CheckpointStore):
        return subject
    # by its path: the user's word may be `demo`
    return _opened(recipe.with_model(str(directory)), subject)
