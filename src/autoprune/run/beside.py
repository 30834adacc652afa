"""Pruned models beside their dense one: how far predictions moved, for `compare` and after pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoprune.core.shift import PredictionShift
from autoprune.data.windows import Windows
from autoprune.errors import ModelError
from autoprune.evaluation.compare import compare_predictions
from autoprune.evaluation.remember import Notes
from autoprune.events import Emit, Notice, silent
from autoprune.model.stream import Place
from autoprune.recipe.recipe import Recipe
from autoprune.results.comparison import shift_from_json
from autoprune.run.compare_memory import fitted
from autoprune.run.measure import identity
from autoprune.run.memory import Layout
from autoprune.run.open import Subject, fits, open_model
from autoprune.run.plan import Plan
from autoprune.storage.store import CheckpointStore


@dataclass(frozen=True)
class SideBySide:
    """A dense model and others, opened, with the windows on which they are compared."""

    dense: Subject
    dense_known: Mapping[str, object]  # all that its figures depend on besides texts and tasks; empty: unknown
    others: Mapping[str, Subject]  # by the name in the tables
    known: Mapping[str, Mapping[str, object]]  # by name: the same of the others
    windows: Mapping[str, Windows]
    layout: Layout
    emit: Emit

    def shifts(self, text: str, notes: Notes, folder: Path | None) -> dict[str, PredictionShift]:
        """Every model on one text; what was noted before is not measured again.

        ``folder``: where hidden states go if they live on disk; None: where temporary files go.
        """
        windows = self.windows[text]
        keys = {
            name: {"dense": self.dense_known, "pruned": known, "windows": windows.fingerprint}
            for name, known in self.known.items()
            if known and self.dense_known
        }
        kept = {name: note for name, key in keys.items() if (note := notes.find(key))}
        for name in kept:
            self.emit(Notice(f"{name} on {text}: measured before"))
        missing = {name: subject.store for name, subject in self.others.items() if name not in kept}
        found = {name: shift_from_json(note) for name, note in kept.items()}
        if missing:
            place = Place(self.layout.activations, self.dense.store.device, folder.resolve() if folder else None)
            if self.layout.activations == "disk" and folder:
                folder.mkdir(parents=True, exist_ok=True)
            measured = compare_predictions(
                self.dense.store, missing, windows, text, batch=self.layout.batch, place=place, emit=self.emit
            )
            for name, shift in measured.items():
                if name in keys:
                    notes.add(keys[name], shift)
            found |= measured
        return found


def check_beside(recipe: Recipe, plan: Plan) -> None:
    """Sees before pruning whether the pruned model and the dense one can be compared afterwards.

    Raises: ModelError for a model in memory, which is changed in place; RecipeError if ``--memory`` is not enough.
    """
    subject = plan.subject
    if subject.checkpoint is None:
        raise ModelError(
            f"compare: {subject.name} is pruned in memory, and then nothing is left of the dense model; give its"
            " directory or hub id instead, or a copy of it to autoprune.compare afterwards"
        )
    both = [(subject, subject.store.resident), (subject, False)]
    fitted(plan.layout, recipe, both, list(plan.evaluation.values()), silent)


def moved(
    recipe: Recipe, plan: Plan, after: Subject, notes: Notes, emit: Emit, folder: Path | None
) -> dict[str, PredictionShift]:
    """How far the pruned model ``after`` is from the dense one, on every evaluation text of the plan.

    The dense model is opened anew. Both are in memory if they fit there, else they are run block by block.
    """
    assert after.checkpoint is not None
    here = after is plan.subject  # pruned in memory, and nowhere else
    source = plan.subject.checkpoint
    assert source is not None
    resident = fits(source, recipe, after.checkpoint)
    if after.store.resident and not resident and not here:
        assert isinstance(after.store, CheckpointStore)
        after.store.release_all()
        after = open_model(recipe.with_model(after.name), resident=False)
    dense = open_model(recipe, resident=resident)
    both = [(subject, subject.store.resident) for subject in (dense, after)]
    layout = fitted(plan.layout, recipe, both, list(plan.evaluation.values()), emit)
    known, name = identity(plan, after), "the pruned model"
    ancestor = {"weights": "those that the pruned model's record names", "batch": layout.batch}
    side = SideBySide(dense, ancestor, {name: after}, {name: known}, plan.evaluation, layout, emit)
    return {text: side.shifts(text, notes, folder)[name] for text in side.windows}
