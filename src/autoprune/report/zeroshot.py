"""Zero-shot results as an aligned table: accuracy in percent with its standard error, and means that say what they average."""

from __future__ import annotations

from autoprune.report.grid import Grid, to_text
from autoprune.report.results import EvaluationRow, TaskResult, ZeroShotResult

METRICS = ("acc", "acc_norm")


def zeroshot_table(row: EvaluationRow) -> str:
    """The text of ``zeroshot_<method>_<threshold>.txt``."""
    assert row.zeroshot is not None
    settings = ", ".join(f"{name} {value}" for name, value in row.zeroshot.settings.items() if value is not None)
    return f"{row.method} {row.target}, sparsity {row.sparsity:.2%}\n\n{to_text(zeroshot_grid(row.zeroshot))}\n{settings}\n"


def zeroshot_grid(result: ZeroShotResult) -> Grid:
    """One line a task, and one mean for each metric over the tasks that have it."""
    lines = [(task.task, task.version, _shown(task.num_fewshot), _shown(task.samples), *(_cell(task, metric) for metric in METRICS)) for task in result.tasks]
    means = [_mean(result, metric) for metric in METRICS]
    lines.append(("mean of the column", "", "", "", *means))
    return Grid(("task", "version", "shots", "samples", *METRICS), tuple(lines), words=2)


def _cell(task: TaskResult, metric: str) -> str:
    if metric not in task.metrics:
        return "-"
    error = f" ± {100 * task.errors[metric]:.2f}" if metric in task.errors else ""
    return f"{100 * task.metrics[metric]:.2f}{error}"


def _mean(result: ZeroShotResult, metric: str) -> str:
    mean, count = result.mean(metric), sum(metric in task.metrics for task in result.tasks)
    return "-" if mean is None else f"{100 * mean:.2f} ({count} tasks)"


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)
