"""Zero-shot results as tables: accuracies in percent with standard errors, means that say what they average, paired
differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoprune.report import numbers
from autoprune.report.grid import Grid, to_text
from autoprune.report.views import Variant, dense_of, first_pass_of
from autoprune.results.types import EvaluationRow, TaskResult, ZeroShotResult

METRICS = ("acc", "acc_norm")
SHARES = (
    *METRICS,
    "exact_match",
    "f1",
    "mcc",
    "em",
    "acc_mutual_info",
    "acc_bytes",
)  # shown in percent; others are no shares
CLEAR = 1.96  # standard errors from zero at which a difference is called clear


@dataclass(frozen=True)
class Difference:
    """How much more is right, in shares, on the same samples; ``error`` is the standard error over the samples."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether chance alone seldom does it."""
        return abs(self.mean) > CLEAR * self.error

    @property
    def text(self) -> str:
        """In percentage points."""
        return f"{100 * self.mean:+.1f} ± {100 * self.error:.1f}"


def zeroshot_table(row: EvaluationRow) -> str:
    """The text of ``zeroshot_<method>_<threshold>.txt``."""
    assert row.zeroshot is not None
    settings = ", ".join(f"{name} {value}" for name, value in row.zeroshot.settings.items() if value is not None)
    head = f"{row.method} {row.target}, sparsity {row.sparsity:.2%}; percent, ± standard error"
    return f"{head}\n\n{to_text(zeroshot_grid(row.zeroshot))}\n{settings}\n"


def zeroshot_grid(result: ZeroShotResult) -> Grid:
    """One line a task, and a line with the mean of every accuracy, which says over how many tasks."""
    metrics = list(dict.fromkeys([*METRICS, *(metric for task in result.tasks for metric in task.metrics)]))
    lines = [
        (t.task, t.version, _shown(t.num_fewshot), _shown(t.samples), *(_cell(t, metric) for metric in metrics))
        for t in result.tasks
    ]
    lines.append(("mean of the column", "", "", "", *(_mean(result, metric) for metric in metrics)))
    return Grid(
        ("task", "version", "shots", "samples", *metrics), tuple(lines), words=2, breaks=frozenset({len(lines) - 2})
    )


def metrics_of(variants: Sequence[Variant]) -> list[str]:
    """The accuracies that any variant has."""
    known = {
        metric for variant in variants for task in tasks_of([variant]) for metric in _results(variant, task)[0].metrics
    }
    return [metric for metric in METRICS if metric in known]


def tasks_of(variants: Sequence[Variant]) -> list[str]:
    """All tasks, in order of first appearance."""
    return list(
        dict.fromkeys(task.task for v in variants for row in v.rows if row.zeroshot for task in row.zeroshot.tasks)
    )


def accuracy_grid(variants: Sequence[Variant], metric: str) -> Grid:
    """One line a variant, one column a task that has the metric, and before them the mean of these columns."""
    tasks = [
        task for task in tasks_of(variants) if any(metric in r.metrics for v in variants for r in _results(v, task))
    ]
    lines = []
    for variant in variants:
        found = [[r for r in _results(variant, task) if metric in r.metrics] for task in tasks]
        if not any(found):
            continue
        means = [statistics.fmean(r.metrics[metric] for r in results) for results in found if results]
        mean = f"{100 * statistics.fmean(means):.1f}" if len(means) == len(tasks) else "-"
        lines.append((variant.name, variant.target, mean, *(_averaged(results, metric) for results in found)))
    head = ("method", "target", f"mean {metric} of {len(tasks)}", *tasks)
    return Grid(head, tuple(lines), breaks=_between_targets(lines), title=f"{metric} in percent, higher is better")


def difference_grid(variants: Sequence[Variant], metric: str) -> Grid:
    """Every variant against the dense model, and LLM-Barber against its first pass, sample by sample; clear ones are
    strong.
    """
    tasks = [
        task for task in tasks_of(variants) if any(metric in r.correct for v in variants for r in _results(v, task))
    ]
    lines: list[tuple[str, ...]] = []
    strong: set[tuple[int, int]] = set()
    for variant, base in _comparisons(variants):
        found = [_difference(variant, base, task, metric) for task in tasks]
        if not any(found):
            continue
        whole = _whole([d for d in found if d], len(tasks))
        strong |= {(len(lines), 3 + j) for j, d in enumerate([whole, *found]) if d and d.clear}
        lines.append((variant.name, variant.target, base.name, *(d.text if d else "-" for d in [whole, *found])))
    header = ("method", "target", "against", f"mean of {len(tasks)}", *tasks)
    title = f"{metric}, difference in percentage points"
    return Grid(header, tuple(lines), words=3, strong=frozenset(strong), breaks=_between_targets(lines), title=title)


def _between_targets(lines: Sequence[tuple[str, ...]]) -> frozenset[int]:
    return frozenset(i for i in range(len(lines) - 1) if lines[i][1] != lines[i + 1][1])


def _comparisons(variants: Sequence[Variant]) -> Iterator[tuple[Variant, Variant]]:
    for variant in variants:
        dense, first = dense_of(variant, variants), first_pass_of(variant, variants)
        if dense and dense is not variant:
            yield variant, dense
        if first:
            yield variant, first


def _difference(variant: Variant, base: Variant, task: str, metric: str) -> Difference | None:
    """None unless both answered the same number of samples."""
    ours, theirs = _rates(variant, task, metric), _rates(base, task, metric)
    if len(ours) != len(theirs) or len(ours) < 2:
        return None
    apart = [a - b for a, b in zip(ours, theirs, strict=True)]
    return Difference(statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart)))


def _whole(found: Sequence[Difference], tasks: int) -> Difference | None:
    """The mean over all tasks, whose samples are independent of each other."""
    if len(found) < tasks:
        return None
    return Difference(statistics.fmean(d.mean for d in found), math.hypot(*(d.error for d in found)) / tasks)


def _rates(variant: Variant, task: str, metric: str) -> list[float]:
    """For every sample the share of the variant's seeds that were right."""
    words = [r.correct[metric] for r in _results(variant, task) if metric in r.correct]
    if not words or len({len(word) for word in words}) > 1:
        return []
    return [sum(word[i] == "1" for word in words) / len(words) for i in range(len(words[0]))]


def _results(variant: Variant, task: str) -> list[TaskResult]:
    return [t for row in variant.rows if row.zeroshot for t in row.zeroshot.tasks if t.task == task]


def _averaged(results: Sequence[TaskResult], metric: str) -> str:
    """Mean over seeds, with the mean standard error over samples."""
    if not results:
        return "-"
    errors = [r.errors[metric] for r in results if metric in r.errors]
    error = f" ± {100 * statistics.fmean(errors):.1f}" if errors else ""
    return f"{100 * statistics.fmean(r.metrics[metric] for r in results):.1f}{error}"


def _cell(task: TaskResult, metric: str) -> str:
    if metric not in task.metrics:
        return "-"
    if metric.partition(",")[0] not in SHARES:
        return numbers.perplexity_text(task.metrics[metric], task.errors.get(metric))
    error = f" ± {100 * task.errors[metric]:.2f}" if metric in task.errors else ""
    return f"{100 * task.metrics[metric]:.2f}{error}"


def _mean(result: ZeroShotResult, metric: str) -> str:
    mean, count = result.mean(metric), sum(metric in task.metrics for task in result.tasks)
    if mean is None or metric.partition(",")[0] not in SHARES:
        return "-"
    return f"{100 * mean:.2f} (of {count})"


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)
