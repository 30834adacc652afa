"""Typed results: what a run measured, ready for JSON. Imports no torch."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoprune.core.shift import PredictionShift
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class PruningSummary:
    """The outcome of pruning a model."""

    layers: tuple[LayerOutcome, ...]
    sub_blocks: tuple[SubBlockOutcome, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by phase
    warnings: tuple[str, ...] = ()
    surveys: dict[str, Any] = field(default_factory=dict)  # by step: what it found before anything was pruned
    trained: tuple[str, ...] = ()  # parameters that are no layer's weight and were changed, such as norms
    whole: dict[str, Any] = field(default_factory=dict)  # by step on the whole model: its loss before and after

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned layers together."""
        weights = sum(layer.weights for layer in self.layers)
        return sum(layer.zeros for layer in self.layers) / weights if weights else 0.0

    def __repr__(self) -> str:
        errors = [(layer.error, layer.name) for layer in self.layers if layer.error is not None]
        worst = f", largest relative error {max(errors)[0]:.3g} in {max(errors)[1]}" if errors else ""
        return f"{len(self.layers)} layers, {self.sparsity:.2%} zeros{worst}"

    def to_pandas(self) -> DataFrame:
        """One line a layer: block, layer, weights, zeros, sparsity, error, and what its step noted."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "block": la.block,
                    "layer": la.short_name,
                    "weights": la.weights,
                    "zeros": la.zeros,
                    "sparsity": la.sparsity,
                    "error": la.error,
                    **la.notes,
                }
                for la in self.layers
            ]
        )


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one model on one text by the papers' protocol (see docs/conventions.md)."""

    source: str  # the user's own word, e.g. wikitext2 or stories.jsonl
    perplexity: float
    seqlen: int
    windows: int
    tokens: int  # windows * seqlen
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def bits_per_byte(self) -> float | None:
        """What models with different tokenizers can be compared by; None where the bytes of a token are unknown."""
        bits = self.provenance.get("bits_per_byte")
        return None if bits is None else float(bits)


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one task of lm-evaluation-harness; ``metrics``, ``errors`` (standard) and ``correct`` are keyed
    acc, acc_norm.

    ``correct`` says of every sample, in the task's order, whether it was right: a word of 1 and 0, from which methods
    are compared sample by sample. ``chosen`` says of a multiple-choice task's samples which answer was taken: a digit
    or a letter for each, 0 the first; from which flips are counted.
    """

    task: str
    version: str
    num_fewshot: int | None
    samples: int | None
    metrics: dict[str, float]
    errors: dict[str, float]
    correct: dict[str, str] = field(default_factory=dict, repr=False)
    chosen: dict[str, str] = field(default_factory=dict, repr=False)
    items: str = ""  # a digest of the words in which the samples were put; empty where unknown
    documents: str = ""  # a digest of the samples themselves, with all their choices; empty where unknown


@dataclass(frozen=True, repr=False)
class ZeroShotResult:
    """Accuracies on several tasks, and the settings they were measured with."""

    tasks: tuple[TaskResult, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Mean of one metric over the tasks that have it; None if none has."""
        values = [task.metrics[metric] for task in self.tasks if metric in task.metrics]
        return sum(values) / len(values) if values else None

    def __repr__(self) -> str:
        means = (
            (metric, self.mean(metric)) for metric in dict.fromkeys(m for task in self.tasks for m in task.metrics)
        )
        told = ", ".join(f"mean {metric} {value:.2%}" for metric, value in means if value is not None)
        return f"ZeroShotResult of {len(self.tasks)} tasks, {told}, task by task in .to_pandas()"

    def to_pandas(self) -> DataFrame:
        """One line for each task: its metrics, their standard errors, version, shots and samples."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "task": task.task,
                    **task.metrics,
                    **{f"{metric} stderr": error for metric, error in task.errors.items()},
                    "version": task.version,
                    "num_fewshot": task.num_fewshot,
                    "samples": task.samples,
                }
                for task in self.tasks
            ]
        )


@dataclass(frozen=True)
class Cost:
    """What a run took: wall seconds, by phase too, and peak memory of its process in bytes."""

    seconds: float
    peak_bytes: int
    device_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """The same texts under another model: the dense one, or the one before the last step."""

    method: str  # dense, or the steps before the last, as an ``EvaluationRow`` names them
    perplexity: tuple[PerplexityResult, ...]
    # of the row's perplexity over these, as a fraction: 0.1 is 10 % more; geometric mean over the texts
    change: float | None = None


@dataclass(frozen=True)
class FileSize:
    """The weight files of a checkpoint, in bytes."""

    stored: int
    compressed: int  # about as many if each file were compressed as it is, without loss


@dataclass(frozen=True)
class About:
    """What a row was measured on and with."""

    parameters: int  # of the whole model
    dtype: str  # that its blocks ran in
    device: str  # cpu, or the accelerator's name
    date: str  # UTC, as ISO 8601 writes it, to the second
    versions: dict[str, str] = field(default_factory=dict)  # of autoprune, python, torch, transformers


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the results table: a way of pruning and what it costs."""

    method: str  # the steps, each with its settings, e.g. dense, wanda, wanda+barber (block 0.1)
    target: str  # e.g. dense, 50 %, 2:4
    sparsity: float  # actual fraction of zeros
    perplexity: tuple[PerplexityResult, ...]
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    pruning: PruningSummary | None = None
    zeroshot: ZeroShotResult | None = None
    cost: Cost | None = None
    about: About | None = None
    beside: tuple[Reference, ...] = ()  # what it is compared with: the dense model, and the one before the last step
    size: FileSize | None = None  # of the checkpoint that was written
    # By text: how far predictions are from the dense model's.
    shifts: dict[str, PredictionShift] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A model as it is: its perplexity on every text, and its accuracies where tasks were measured.

    Iterating goes over ``texts``. ``warnings`` are what a user should know though it is no error.
    """

    texts: tuple[PerplexityResult, ...]
    zeroshot: ZeroShotResult | None = None
    warnings: tuple[str, ...] = ()

    @property
    def perplexity(self) -> dict[str, float]:
        """Perplexity by evaluation text, as of a ``PruneResult``."""
        return {result.source: result.perplexity for result in self.texts}

    def __iter__(self) -> Iterator[PerplexityResult]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> PerplexityResult:
        return self.texts[index]

    def __repr__(self) -> str:
        from autoprune.results.shown import screen

        lines = [f"{name}: {value:.4g}" for name, value in self.perplexity.items()]
        tasks = [] if self.zeroshot is None else [repr(self.zeroshot)]
        return screen(
            "Evaluation: perplexity" if lines else "Evaluation",
            [*lines, *tasks, *(f"warning: {text}" for text in self.warnings)],
        )

    def to_pandas(self) -> DataFrame:
        """One line for each text: perplexity, bits per byte, loss in nats, window length, windows, tokens."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "text": r.source,
                    "perplexity": r.perplexity,
                    "bits_per_byte": r.bits_per_byte,
                    "loss": r.provenance.get("loss"),
                    "seqlen": r.seqlen,
                    "windows": r.windows,
                    "tokens": r.tokens,
                }
                for r in self.texts
            ]
        )

    def _repr_html_(self) -> str:
        from autoprune.results.shown import perplexity_table
        from autoprune.results.table import to_html

        tasks = "" if self.zeroshot is None else f"<p>{html.escape(repr(self.zeroshot))}</p>"
        return "".join(
            [
                to_html(perplexity_table(self.texts)) if self.texts else "",
                tasks,
                *(f"<p>{html.escape(w)}</p>" for w in self.warnings),
            ]
        )
