"""Zero-shot results as tables: percent with standard errors, means that say what they average, paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autoprune.report.tables import leaders, names_of, target_breaks
from autoprune.results import numbers
from autoprune.results.comparison import same_items
from autoprune.results.table import Column, Table, from_rows, to_text
from autoprune.results.tidy import Results, changed
from autoprune.results.types import EvaluationRow, TaskResult, ZeroShotResult
from autoprune.results.variants import Variant

METRICS = ("acc", "acc_norm")
SHARES = (
    *METRICS,
    "exact_match",
    "f1",
    "mcc",
    "em",
    "acc_mutual_info",
    "acc_bytes",
    *(f"{level}_level_{how}_acc" for level in ("prompt", "inst") for how in ("strict", "loose")),  # IFEval's
)  # in percent; others are no shares
BOLD = " Bold: the highest of each target, among equal shares of zeros."
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


def zeroshot_text(row: EvaluationRow) -> str:
    """The text of ``zeroshot_….txt``."""
    assert row.zeroshot is not None
    settings = ", ".join(f"{name} {value}" for name, value in row.zeroshot.settings.items() if value is not None)
    head = f"{row.method} {row.target}, sparsity {row.sparsity:.2%}; percent, ± standard error"
    return f"{head}\n\n{to_text(zeroshot_table(row.zeroshot))}\n{settings}\n"


def zeroshot_table(result: ZeroShotResult) -> Table:
    """A line a task, and a line with the mean of every accuracy, which says over how many tasks."""
    metrics = list(dict.fromkeys([*METRICS, *(metric for task in result.tasks for metric in task.metrics)]))
    lines = [
        (t.task, t.version, _shown(t.num_fewshot), _shown(t.samples), *(_cell(t, metric) for metric in metrics))
        for t in result.tasks
    ]
    lines.append(("mean of the column", "", "", "", *(_mean(result, metric) for metric in metrics)))
    columns = from_rows(["task", "version", "shots", "samples", *metrics], lines, words=2)
    return Table((columns[0], *(_spared(c) for c in columns[1:])), frozenset({len(lines) - 2}))


def metrics_of(results: Results) -> list[str]:
    """The accuracies that any variant has."""
    known = {metric for row in results.rows if row.zeroshot for task in row.zeroshot.tasks for metric in task.metrics}
    return [metric for metric in METRICS if metric in known] + _others(results)


def _others(results: Results) -> list[str]:
    """The shares by which tasks are judged that have none of the usual accuracies, such as those of generated text."""
    tasks = [task for row in results.rows if row.zeroshot for task in row.zeroshot.tasks]
    odd = [metric for task in tasks if not set(METRICS) & set(task.metrics) for metric in task.metrics]
    return [metric for metric in dict.fromkeys(odd) if metric.partition(",")[0] in SHARES]


def accuracy_table(results: Results, metric: str) -> Table:
    """A line a variant, a column a task that has the metric, and before them the mean of these columns."""
    tasks = [t for t in _tasks(results) if any(results.spread(v, metric, t) for v in results.variants)]
    shown = [v for v in results.variants if any(results.spread(v, metric, t) for t in tasks)]
    found = [[results.spread(v, metric, task) for task in tasks] for v in shown]
    means = [100 * statistics.fmean(s.mean for s in line if s) if None not in line else None for line in found]
    columns = [*names_of(shown, models=len(results.models) > 1)]
    columns.append(_best_shown(results, shown, f"mean {metric} of {len(tasks)}", means))
    moved = [[s for task in tasks if (s := results.spread(v, changed(metric), task))] for v in shown]
    if any(moved):
        cells = tuple(f"{100 * statistics.fmean(s.mean for s in line):.1f}" if line else "-" for line in moved)
        columns.append(Column("answers changed", cells, spare=len(tasks) + 3))
    for j, task in enumerate(tasks):
        shares = [100 * s.mean if (s := line[j]) else None for line in found]
        cells = tuple(_averaged(v, task, metric) for v in shown)
        columns.append(replace(_best_shown(results, shown, task, shares), cells=cells, spare=len(columns)))
    note = "± is the standard error over a task's items." + BOLD * any(column.strong for column in columns)
    return Table(tuple(columns), target_breaks(shown), f"{metric} in percent, higher is better", note)


def _best_shown(results: Results, shown: Sequence[Variant], head: str, values: Sequence[float | None]) -> Column:
    """A column of percentages with one digit after the point, the highest of each target stressed."""
    rounded = [None if value is None else round(value, 1) for value in values]
    cells = tuple("-" if value is None else f"{value:.1f}" for value in values)
    return Column(head, cells, strong=leaders(results, shown, rounded, lowest=False))


def difference_table(results: Results, metric: str) -> Table:
    """Every variant against the dense model, and against what it was before its last step, sample by sample; clear
    differences are stressed.
    """
    tasks = [t for t in _tasks(results) if any(metric in r.correct for v in results.variants for r in _results(v, t))]
    pairs, bases, lines = list[Variant](), list[str](), list[list[Difference | None]]()
    for variant, base in _comparisons(results):
        found = [_difference(variant, base, task, metric) for task in tasks]
        if any(found):
            pairs.append(variant)
            bases.append(base.name)
            lines.append([_whole([d for d in found if d], len(tasks)), *found])
    columns = [*names_of(pairs, models=len(results.models) > 1), Column("against", tuple(bases), words=True)]
    for j, head in enumerate([f"mean of {len(tasks)}", *tasks]):
        column = [line[j] for line in lines]
        strong = frozenset(i for i, d in enumerate(column) if d and d.clear)
        columns.append(Column(head, tuple(d.text if d else "-" for d in column), strong=strong, spare=j))
    note = "Item by item, ± is the standard error. Bold: further from zero than 1.96 standard errors."
    return Table(tuple(columns), target_breaks(pairs), f"{metric}, difference in percentage points", note)


def accuracy_findings(results: Results) -> Iterator[str]:
    """A sentence for each model, target and accuracy: what is most often right of those with equal sparsity, and
    whether the items bear out that it is better than the next, and worse than the dense model.
    """
    for metric in metrics_of(results):
        for rivals in results.groups():
            group = [v for v in rivals if any(results.spread(v, metric, t) for t in _tasks(results))]
            tasks = [t for t in _tasks(results) if all(results.spread(v, metric, t) for v in group)]
            means = {
                v: statistics.fmean(s.mean for t in tasks if (s := results.spread(v, metric, t)))
                for v in group
                if tasks
            }
            order = sorted(means, key=lambda v: -means[v])
            if len(order) < 2:
                continue
            first, second = order[:2]
            where = f"{first.model}, {first.target}" if len(results.models) > 1 else first.target
            over = f"mean of {len(tasks)} task{'s' * (len(tasks) > 1)}"
            said = [f"Most often right at {where} by {metric}, {over}: {first.name}, {100 * means[first]:.1f} %."]
            dense = results.dense_of(first)
            for other, words in ((dense, "The dense model"), (second, f"Next, {second.name},")):
                if other and (apart := _over(first, other, tasks, metric)):
                    said.append(f"{words} is {apart}.")
            yield " ".join(said)


def _over(variant: Variant, base: Variant, tasks: Sequence[str], metric: str) -> str | None:
    """How much more often than the variant the base is right on the same items, and how sure that is; None if they
    were asked others.
    """
    found = [d for task in tasks if (d := _difference(base, variant, task, metric))]
    if (whole := _whole(found, len(tasks))) is None:
        return None
    side = "higher" if whole.mean > 0 else "lower"
    if whole.error == 0:
        return (
            f"{side} by {100 * abs(whole.mean):.1f} points on every item" if whole.mean else "right on the same items"
        )
    p = math.erfc(abs(whole.mean) / whole.error / math.sqrt(2))
    how = "a clear difference" if whole.clear else "which may be chance"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    size = f"{100 * abs(whole.mean):.1f} ± {100 * whole.error:.1f} points"
    return f"{side} by {size} on the same items, {how} (paired z-test, {shown})"


def _comparisons(results: Results) -> Iterator[tuple[Variant, Variant]]:
    for variant in results.variants:
        for base in (results.dense_of(variant), results.before(variant)):
            if base and base is not variant:
                yield variant, base


def _difference(variant: Variant, base: Variant, task: str, metric: str) -> Difference | None:
    """None unless both answered the same samples."""
    if not all(same_items(a, b) for a in _results(variant, task) for b in _results(base, task)):
        return None
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


def _tasks(results: Results) -> list[str]:
    """All tasks, in order of first appearance."""
    return list(dict.fromkeys(task.task for row in results.rows if row.zeroshot for task in row.zeroshot.tasks))


def _results(variant: Variant, task: str) -> list[TaskResult]:
    return [t for row in variant.rows if row.zeroshot for t in row.zeroshot.tasks if t.task == task]


def _averaged(variant: Variant, task: str, metric: str) -> str:
    """Mean over seeds, with the mean standard error over samples."""
    results = [r for r in _results(variant, task) if metric in r.metrics]
    if not results:
        return "-"
    errors = [r.errors[metric] for r in results if metric in r.errors]
    error = f" ± {100 * statistics.fmean(errors):.1f}" if errors else ""
    return f"{100 * statistics.fmean(r.metrics[metric] for r in results):.1f}{error}"


def _cell(task: TaskResult, metric: str) -> str:
    if metric not in task.metrics:
        return "-"
    if metric.partition(",")[0] not in SHARES:
        return numbers.number_text(task.metrics[metric], task.errors.get(metric))
    error = f" ± {100 * task.errors[metric]:.2f}" if metric in task.errors else ""
    return f"{100 * task.metrics[metric]:.2f}{error}"


def _mean(result: ZeroShotResult, metric: str) -> str:
    mean, count = result.mean(metric), sum(metric in task.metrics for task in result.tasks)
    if mean is None or metric.partition(",")[0] not in SHARES:
        return "-"
    return f"{100 * mean:.2f} (of {count})"


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)


def _spared(column: Column) -> Column:
    """What may be left out first on a narrow terminal: how it was measured."""
    spare = {"version": 3, "shots": 2, "samples": 1}.get(column.head, 0)
    return Column(column.head, column.cells, column.words, spare=spare)
