"""Flips: which answers a pruned model changed, item by item, even at equal accuracy (arXiv 2407.09141)."""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autoprune.errors import DataError, NumericsError
from autoprune.results.comparison import Flips, flips_between
from autoprune.results.types import TaskResult

METRICS = ("acc", "acc_norm")
LETTERS = string.digits + string.ascii_letters  # the number of an answer in one letter
Sample = Mapping[str, Any]  # an entry of lm-evaluation-harness's per-sample log


def answers(samples: Sequence[Sample], metrics: Collection[str] = METRICS) -> dict[str, str]:
    """Which of its choices a model took, by metric a letter for each sample of a multiple-choice task's log; empty
    for other tasks.

    ``acc`` chooses by likelihood, ``acc_norm`` by likelihood for each letter of the answer; a sample's ``delimiter``
    is what stands before an answer. A metric by which the harness has judged otherwise is left out.
    Raises: NumericsError naming an item of which a likelihood is NaN.
    """
    if not samples or not all(map(_has_choices, samples)):
        return {}
    for sample in samples:
        if any(math.isnan(float(likelihood)) for likelihood, _ in sample["filtered_resps"]):
            raise NumericsError(
                f"item {sample['doc_id']}: the likelihood of an answer is NaN; the model's activations overflow or its"
                " weights are damaged; try --dtype float32"
            )
    found = {metric: _answers(samples, metric) for metric in METRICS if metric in metrics}
    return {metric: word for metric, word in found.items() if word}


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


def _answers(samples: Sequence[Sample], metric: str) -> str:
    """A letter for each sample; empty if one can't be known."""
    chosen = [_choice(sample, metric) for sample in samples]
    if any(
        choice is None or _contradicted(sample, metric, choice) for sample, choice in zip(samples, chosen, strict=True)
    ):
        return ""
    return "".join(LETTERS[choice] for choice in chosen if choice is not None)


def _choice(sample: Sample, metric: str) -> int | None:
    """Of equals the first. None for ``acc_norm`` where the choices are different questions before one answer, for the
    log does not hold the choices whose letters the harness counts.
    """
    scored, asked = list(sample["filtered_resps"]), list(sample["arguments"])
    if "acc_mutual_info" in sample:  # the second half are the answers without their question
        scored, asked = scored[: len(scored) // 2], asked[: len(asked) // 2]
    scores = [float(likelihood) for likelihood, _ in scored]
    if metric == "acc_norm":
        if len({question for question, _ in asked}) > 1:
            return None
        delimiter = len(sample.get("delimiter", " "))
        letters = [len(answer) - delimiter for _, answer in asked]
        scores = [score / max(1, count) for score, count in zip(scores, letters, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)


def _contradicted(sample: Sample, metric: str, choice: int) -> bool:
    """Whether the harness's own verdict is that of another choice."""
    right, verdict = sample.get("target"), sample.get(metric)
    return isinstance(right, int) and verdict in (0, 1) and (choice == right) != bool(verdict)
