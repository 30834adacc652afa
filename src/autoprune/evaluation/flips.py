"""Flips: which answers a pruned model changed, item by item, even at equal accuracy (arXiv 2407.09141)."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autoprune.errors import DataError
from autoprune.results.comparison import Flips, flips_between
from autoprune.results.types import TaskResult

METRICS = ("acc", "acc_norm")
LETTERS = string.digits + string.ascii_letters  # the number of an answer in one letter
Sample = Mapping[str, Any]  # an entry of lm-evaluation-harness's per-sample log


def answers(samples: Sequence[Sample], metrics: Collection[str] = METRICS) -> dict[str, str]:
    """Which of its choices a model took, by metric a letter for each sample of a multiple-choice task's log; empty
    for other tasks.

    ``acc`` chooses by likelihood, ``acc_norm`` by likelihood for each letter of the answer; a sample's ``delimiter``
    is what the task puts before an answer.
    """
    if not samples or not all(map(_has_choices, samples)):
        return {}
    wanted = [metric for metric in METRICS if metric in metrics]
    return {metric: "".join(LETTERS[_choice(sample, metric)] for sample in samples) for metric in wanted}


def flips(dense: Sequence[TaskResult], pruned: Sequence[TaskResult]) -> tuple[Flips, ...]:
    """Every task of the dense model's against the same of a pruned one's, by each accuracy that it has.

    Raises: DataError naming a task that is not judged by an accuracy, item by item, or of which the two answered
    other items.
    """
    found: list[Flips] = []
    theirs = {result.task: result for result in pruned}
    for result in dense:
        if not result.chosen:
            raise no_choices(result.task)
        own = flips_between(result, theirs[result.task]) if result.task in theirs else ()
        if not own:
            raise DataError(
                f"task {result.task}: the two models answered other items, or it is not judged item by item by acc or"
                " acc_norm; leave it out"
            )
        found += own
    return tuple(found)


def no_choices(task: str) -> DataError:
    """What to say of a task whose answers are not chosen from a list."""
    return DataError(f"task {task} is no multiple-choice task, so it has no answers that could flip; leave it out")


def _has_choices(sample: Sample) -> bool:
    scored = sample.get("filtered_resps", ())
    pairs = all(not isinstance(answer, str) and len(answer) == 2 for answer in scored)
    return pairs and 2 <= len(scored) == len(sample.get("arguments", ())) <= len(LETTERS)


def _choice(sample: Sample, metric: str) -> int:
    """Of equals the first."""
    scored = list(sample["filtered_resps"])
    if "acc_mutual_info" in sample:  # the second half are the answers without their question
        scored = scored[: len(scored) // 2]
    scores = [float(likelihood) for likelihood, _ in scored]
    if metric == "acc_norm":
        delimiter = len(sample.get("delimiter", " "))
        letters = [len(answer) - delimiter for _, answer in sample["arguments"][: len(scores)]]
        scores = [score / max(1, count) for score, count in zip(scores, letters, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)
