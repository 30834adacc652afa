"""Flips: which answers a pruned model changed, item by item, even at equal accuracy (arXiv 2407.09141)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.core.mcnemar import mcnemar
from autoprune.errors import DataError
from autoprune.results.comparison import Flips

METRICS = ("acc", "acc_norm")
Sample = Mapping[str, Any]  # an entry of lm-evaluation-harness's per-sample log


def flips(
    task: str, dense: Sequence[Sample], pruned: Sequence[Sample], metric: str = "acc", delimiter: str = " "
) -> Flips:
    """Compares the logs (``log_samples``) that two models left of a multiple-choice task.

    ``metric`` says how an answer is chosen: ``acc`` by likelihood, ``acc_norm`` by likelihood for each letter; for the
    latter ``delimiter`` is what the task puts before an answer.
    Raises: DataError naming the task if it is no multiple-choice task, does not have the metric, or if the runs are
    not of the same items.
    """
    ours, theirs = ({sample["doc_id"]: sample for sample in samples} for samples in (dense, pruned))
    if not ours or ours.keys() != theirs.keys():
        odd = len(ours.keys() ^ theirs.keys())
        raise DataError(
            f"task {task}: the two runs answer different items ({odd} of them are in one log only); run both with"
            " the same --limit"
        )
    changed = down = up = 0
    for item, before in ours.items():
        after = theirs[item]
        if before.get("prompt_hash") != after.get("prompt_hash"):
            raise DataError(
                f"task {task}: item {item} was put in other words to the two models; run both with the same"
                " --num_fewshot"
            )
        was, now = (_correct(task, sample, metric) for sample in (before, after))
        changed += chosen(task, before, metric, delimiter) != chosen(task, after, metric, delimiter)
        down, up = down + (was and not now), up + (now and not was)
    return Flips(task, metric, len(ours), changed, down, up, mcnemar(down, up))


def flips_of_runs(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> tuple[Flips, ...]:
    """Every task of two runs of the harness (``simple_evaluate(…, log_samples=True)``), by each accuracy that it has.

    Raises: DataError as ``flips`` does.
    """
    found = []
    for task, samples in dense["samples"].items():
        delimiter = dense["configs"][task].get("target_delimiter", " ")
        metrics = [metric for metric in METRICS if metric in samples[0]]
        found += [
            flips(task, samples, pruned["samples"].get(task, ()), metric, delimiter)
            for metric in metrics or METRICS[:1]
        ]
    return tuple(found)


def _correct(task: str, sample: Sample, metric: str) -> bool:
    if sample.get(metric) not in (0, 1):
        raise DataError(
            f"task {task}: it is not judged by {metric}, or not item by item; flips are counted for acc and acc_norm"
        )
    return bool(sample[metric])


def chosen(task: str, sample: Sample, metric: str, delimiter: str = " ") -> int:
    """Which of the choices the model took, counted from 0. Raises: DataError if there were none."""
    choices = sample["filtered_resps"]
    if len(choices) < 2 or any(isinstance(choice, str) or len(choice) != 2 for choice in choices):
        raise no_choices(task)
    if "acc_mutual_info" in sample:  # the second half are the answers without their question
        choices = choices[: len(choices) // 2]
    scores = [float(likelihood) for likelihood, _ in choices]
    if metric == "acc_norm":
        letters = [len(continuation) - len(delimiter) for _, continuation in sample["arguments"][: len(scores)]]
        scores = [score / max(1, count) for score, count in zip(scores, letters, strict=True)]
    elif metric != "acc":
        raise DataError(
            f"task {task}: {metric} says nothing about which answer was chosen; flips are counted for acc and acc_norm"
        )
    return max(range(len(scores)), key=scores.__getitem__)


def no_choices(task: str) -> DataError:
    """What to say of a task whose answers are not chosen from a list."""
    return DataError(f"task {task} is no multiple-choice task, so it has no answers that could flip; leave it out")
