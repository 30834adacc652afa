"""Results as pandas data frames, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report.views import prune_seconds, seed_of, settings_of, short_name, texts_of, variants_of
from autoprune.results.types import EvaluationRow, PerplexityResult, PruningSummary, ZeroShotResult

if TYPE_CHECKING:
    from pandas import DataFrame


def perplexity_frame(results: Iterable[PerplexityResult]) -> DataFrame:
    """One line for each text."""
    from pandas import DataFrame

    lines = [
        {
            "text": r.source,
            "perplexity": r.perplexity,
            "bits_per_byte": r.bits_per_byte,
            "loss": r.provenance.get("loss"),
            "seqlen": r.seqlen,
            "windows": r.windows,
            "tokens": r.tokens,
        }
        for r in results
    ]
    return DataFrame(lines)


def accuracy_frame(result: ZeroShotResult) -> DataFrame:
    """One line for each task."""
    from pandas import DataFrame

    lines = [
        {
            "task": task.task,
            **task.metrics,
            **{f"{metric} stderr": error for metric, error in task.errors.items()},
            "version": task.version,
            "num_fewshot": task.num_fewshot,
            "samples": task.samples,
        }
        for task in result.tasks
    ]
    return DataFrame(lines)


def rows_frame(rows: Sequence[EvaluationRow]) -> DataFrame:
    """The lines of ``flat_rows``."""
    from pandas import DataFrame

    return DataFrame(flat_rows(rows))


def flat_rows(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """One line a row: what it was, each text's perplexity, headed as in the tables, each task's accuracies and
    standard errors, what it took.
    """
    labels = {(text.source, text.seqlen): text.label for text in texts_of(rows)}
    extras = {id(row): variant.extra for variant in variants_of(rows) for row in variant.rows}
    lines = []
    for row in rows:
        line: dict[str, Any] = {
            "model": settings_of(row).get("model"),
            "method": row.method,
            "settings": extras[id(row)],
        }
        line |= {"target": row.target, "seed": seed_of(row), "sparsity": row.sparsity}
        line |= {labels[p.source, p.seqlen]: p.perplexity for p in row.perplexity}
        line |= {
            f"{labels[p.source, p.seqlen]} bits per byte": bits
            for p in row.perplexity
            if (bits := p.bits_per_byte) is not None
        }
        for task in row.zeroshot.tasks if row.zeroshot else ():
            line |= {f"{task.task} {metric}": value for metric, value in task.metrics.items()}
            line |= {f"{task.task} {metric} stderr": error for metric, error in task.errors.items()}
        line |= {"prune_seconds": prune_seconds(row)}
        line |= {"seconds": row.cost.seconds, "peak_bytes": row.cost.peak_bytes} if row.cost else {}
        lines.append(line)
    return lines


def layers_frame(summary: PruningSummary) -> DataFrame:
    """One line a layer, with what its method noted."""
    from pandas import DataFrame

    lines = [
        {
            "block": la.block,
            "layer": short_name(la),
            "weights": la.weights,
            "zeros": la.zeros,
            "sparsity": la.sparsity,
            "error": la.error,
            **la.notes,
        }
        for la in summary.layers
    ]
    return DataFrame(lines)
