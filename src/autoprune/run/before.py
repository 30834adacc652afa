"""What a result is set beside: the dense model, and the model before the last step where that was measured before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import NumericsError
from autoprune.evaluation.remember import Memory
from autoprune.events import Emit, Event, Notice, Phase
from autoprune.recipe.recipe import STEPS, Recipe
from autoprune.results.codec import dump_json
from autoprune.results.types import EvaluationRow, PerplexityResult, Reference
from autoprune.results.variants import DENSE
from autoprune.run.measure import check_in_parts, measure_text, run_as
from autoprune.run.open import Subject
from autoprune.run.plan import Plan, needs_data


class Before:
    """The references of one run, gathered while it goes on: a model in memory has to be measured before it is pruned,
    one on disk can wait until other processes have left.
    """

    def __init__(self, recipe: Recipe, plan: Plan, emit: Emit, *, wanted: bool) -> None:
        """``wanted``: whether the dense model is to be measured at all."""
        self._recipe, self._plan, self._emit = recipe, plan, _once(emit)
        self._wanted = wanted and bool(plan.evaluation) and bool(plan.steps)
        self._about: Mapping[str, Any] = {}
        self._dense: tuple[PerplexityResult, ...] | None = None

    def checked(self, about: Mapping[str, Any]) -> None:
        """The model is checked, as ``about`` says, and nothing is pruned yet."""
        self._about = about
        if self._wanted and self._plan.subject.store.resident:
            self._dense = self._measured(lambda: self._plan.subject)

    @property
    def memory(self) -> Memory:
        """Where the perplexities of what is measured are kept for later runs."""
        if not self._plan.steps:
            return _memory("dense", self._plan, {"model": self._about["model"]["fingerprint"]}, self._emit)
        return _memory("pruned", self._plan, _made_by(self._about), self._emit)

    def measure(self, opened: Callable[[], Subject], folder: Path | None = None) -> None:
        """Measures the dense model unless that is done; ``opened`` gives it anew, for it is pruned by now.

        ``folder``: where hidden states go if the plan keeps them on disk.
        """
        if self._wanted and self._dense is None:
            self._dense = self._measured(opened, folder)

    def of(self, row: EvaluationRow) -> tuple[Reference, ...]:
        """What the row, whose texts are measured, is set beside."""
        if not self._dense:
            return ()
        first = row.method.rpartition("+")[0]
        found = ((DENSE[0], self._dense), (first, self._before_last_step()))
        return tuple(Reference(name, texts, _change(row.perplexity, texts)) for name, texts in found if texts)

    def _measured(self, opened: Callable[[], Subject], folder: Path | None = None) -> tuple[PerplexityResult, ...]:
        """The dense model's perplexities; none where its losses are no numbers, for that fails no pruning."""
        memory = _memory("dense", self._plan, {"model": self._about["model"]["fingerprint"]}, self._emit)
        try:
            return dense_measured(self._plan, opened, memory, self._emit, folder)
        except NumericsError as error:
            self._emit(Notice(f"the dense model was not measured: {error}"))
            return ()

    def _before_last_step(self) -> tuple[PerplexityResult, ...]:
        """Perplexities of the same run without its last step, if an earlier run has measured all of them."""
        recipe = self._about["recipe"]
        if len(recipe[STEPS]) < 2:
            return ()
        about = {**self._about, "recipe": {**recipe, STEPS: recipe[STEPS][:-1]}}
        if not needs_data(self._recipe, self._plan.steps[:-1]):
            about["calibration"] = None
        memory = _memory("pruned", self._plan, _made_by(about), self._emit)
        found = [memory.recall(windows, name) for name, windows in self._plan.evaluation.items()]
        return tuple(result for result in found if result) if all(found) else ()


def dense_measured(
    plan: Plan, opened: Callable[[], Subject], memory: Memory, emit: Emit, folder: Path | None = None
) -> tuple[PerplexityResult, ...]:
    """The dense model's perplexities on the plan's texts: from ``memory`` where an earlier run has measured them.

    ``opened`` gives the dense model, and is called only if something has to be measured.
    Raises: NumericsError if a loss is no number; ModelError as ``check_in_parts`` does.
    """
    found = {name: memory.recall(windows, name) for name, windows in plan.evaluation.items()}
    for name in (name for name, known in found.items() if known):
        emit(Phase(f"perplexity {name} of the dense model: measured before"))
    if None in found.values():
        subject = opened()
        check_in_parts(plan, subject, emit)
        words = "the dense model" if subject.store.resident else "the dense model, block by block"
        for name, windows in plan.evaluation.items():
            if found[name] is None:
                result = measure_text(plan, subject, windows, name, f"{name} of {words}", emit, folder)
                memory.keep(windows, result)
                found[name] = result
    return tuple(result for result in found.values() if result)


def _memory(kind: str, plan: Plan, depends_on: Mapping[str, Any], emit: Emit) -> Memory:
    """By what a model depends on, and how it runs. Of a model in memory nothing is kept: nothing on disk tells it from
    others.
    """
    known = {**depends_on, "run": run_as(plan, plan.subject)} if plan.subject.checkpoint else {}
    return Memory(kind, json.loads(dump_json(known)), emit)


def _made_by(about: Mapping[str, Any]) -> dict[str, Any]:
    """All that a pruned model depends on, wherever its dense model lies."""
    model = {key: value for key, value in about["model"].items() if key not in ("name", "local")}
    return {**about, "model": model}


def _change(now: tuple[PerplexityResult, ...], before: tuple[PerplexityResult, ...]) -> float | None:
    """Of perplexity, as a fraction; geometric mean over the texts. None where there is none."""
    pairs = [(a.perplexity, b.perplexity) for a, b in zip(now, before, strict=True)]
    if not pairs or not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        return None
    return math.exp(math.fsum(math.log(a) - math.log(b) for a, b in pairs) / len(pairs)) - 1


def _once(emit: Emit) -> Emit:
    """The same notice is not given twice."""
    given: set[str] = set()

    def pass_on(event: Event) -> None:
        if isinstance(event, Notice):
            if event.text in given:
                return
            given.add(event.text)
        emit(event)

    return pass_on
