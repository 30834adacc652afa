"""Typed results: what a run measured, ready for JSON. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.results.outcome import LayerOutcome, SubBlockOutcome

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class PruningSummary:
    """The outcome of pruning a model."""

    layers: tuple[LayerOutcome, ...]
    sub_blocks: tuple[SubBlockOutcome, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by phase
    warnings: tuple[str, ...] = ()
    surveys: dict[str, Any] = field(default_factory=dict)  # by step: what it found before anything was pruned

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned layers together."""
        weights = sum(layer.weights for layer in self.layers)
        return sum(layer.zeros for layer in self.layers) / weights if weights else 0.0


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one model on one text by the papers' protocol (see docs/conventions.md)."""

    source: str  # the user's own word, e.g. wikitext2 or stories.jsonl
    perplexity: float
    seqlen: int
    windows: int
    tokens: int  # windows * seqlen
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float | None:
        """What models with different tokenizers can be compared by; None where nobody knows which bytes a token stands
        for.
        """
        bits = self.provenance.get("bits_per_byte")
        return None if bits is None else float(bits)


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one task of lm-evaluation-harness. ``metrics``, ``errors`` (standard errors) and ``correct`` are
    keyed acc, acc_norm.

    ``correct`` says of every sample, in the task's order, whether it was right: a word of 1 and 0, from which methods
    are compared sample by sample.
    """

    task: str
    version: str
    num_fewshot: int | None
    samples: int | None
    metrics: dict[str, float]
    errors: dict[str, float]
    correct: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ZeroShotResult:
    """Accuracies on several tasks, and the settings they were measured with."""

    tasks: tuple[TaskResult, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Mean of one metric over the tasks that have it; None if none has."""
        values = [task.metrics[metric] for task in self.tasks if metric in task.metrics]
        return sum(values) / len(values) if values else None

    def to_pandas(self) -> DataFrame:
        """One line for each task: its metrics, their standard errors, version, shots and samples."""
        from autoprune.report.frames import accuracy_frame

        return accuracy_frame(self)


@dataclass(frozen=True)
class Cost:
    """What a cell of a benchmark took, in a process of its own: wall seconds, by phase too, and peak memory."""

    seconds: float
    peak_bytes: int
    device_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the results table: a way of pruning and what it costs."""

    method: str  # e.g. dense, magnitude, wanda+barber
    target: str  # e.g. dense, 50 %, 2:4
    sparsity: float  # actual fraction of zeros
    perplexity: tuple[PerplexityResult, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    pruning: PruningSummary | None = None
    zeroshot: ZeroShotResult | None = None
    cost: Cost | None = None


class Perplexities(tuple[PerplexityResult, ...]):
    """Perplexities of one model, one for each text; ``zeroshot`` has its accuracies where tasks were measured."""

    zeroshot: ZeroShotResult | None

    def __new__(cls, results: Iterable[PerplexityResult], zeroshot: ZeroShotResult | None = None) -> Perplexities:
        made = super().__new__(cls, results)
        made.zeroshot = zeroshot
        return made

    def to_pandas(self) -> DataFrame:
        """One line for each text."""
        from autoprune.report.frames import perplexity_frame

        return perplexity_frame(self)


def to_jsonable(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump_json(value: Any) -> str:
    """Indented JSON of any result; NaN and infinity are refused, for they are not JSON."""
    return json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n"


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> str | None:
    """Says in words where two records differ; None if they are equal."""
    for key in sorted({*before, *now}):
        where = f"{path}.{key}" if path else key
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := first_difference(old, new, where):
                return inner
        elif old != new:
            return f"{where} was {old!r} and is {new!r}"
    return None


def row_from_json(raw: dict[str, Any]) -> EvaluationRow:
    """The inverse of ``to_jsonable`` for a row."""
    pruning = raw["pruning"]
    summary = None
    if pruning:
        summary = PruningSummary(
            tuple(LayerOutcome(**layer) for layer in pruning["layers"]),
            tuple(SubBlockOutcome(**sub) for sub in pruning["sub_blocks"]),
            pruning["seconds"],
            tuple(pruning["warnings"]),
        )
    zeroshot, cost = raw.get("zeroshot"), raw.get("cost")
    return EvaluationRow(
        raw["method"],
        raw["target"],
        raw["sparsity"],
        tuple(PerplexityResult(**result) for result in raw["perplexity"]),
        raw["settings"],
        summary,
        (
            ZeroShotResult(tuple(TaskResult(**task) for task in zeroshot["tasks"]), zeroshot["settings"])
            if zeroshot
            else None
        ),
        Cost(**cost) if cost else None,
    )
