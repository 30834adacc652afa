"""Flips on a log made by hand, McNemar's test against values worked out otherwise, and logs that can't be compared."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from autoprune.core.mcnemar import EXACT_UP_TO, mcnemar
from autoprune.errors import DataError, NumericsError
from autoprune.evaluation.flips import answers, flips
from autoprune.results.types import TaskResult


def sample(
    item: int, scores: list[float], gold: int, words: tuple[str, ...] = ("yes", "no", "perhaps"), **changes: Any
) -> dict[str, Any]:
    """One item of the harness's log of a multiple-choice task."""
    normed = [score / len(word) for score, word in zip(scores, words, strict=True)]
    return {
        "doc_id": item,
        "arguments": [(f"question {item}", f" {word}") for word in words],
        "filtered_resps": [(score, False) for score in scores],
        "prompt_hash": f"question {item}",
        "acc": float(scores.index(max(scores)) == gold),
        "acc_norm": float(normed.index(max(normed)) == gold),
        **changes,
    }


DENSE = [
    sample(0, [-1, -2, -3], 0),
    sample(1, [-1, -2, -3], 0),
    sample(2, [-1, -2, -3], 1),
    sample(3, [-1, -2, -3], 2),
    sample(4, [-5, -5, -6], 0),
]
# stays right; correct -> wrong; wrong -> correct; wrong, another answer; right, the first of equals
PRUNED = [
    sample(0, [-2, -3, -9], 0),
    sample(1, [-3, -2, -9], 0),
    sample(2, [-3, -2, -9], 1),
    sample(3, [-3, -2, -9], 2),
    sample(4, [-5, -5, -6], 0),
]


def told(log: list[dict[str, Any]], task: str = "boolq", items: str = "these") -> TaskResult:
    """What is kept of a log."""
    correct = {metric: "".join(str(int(entry[metric])) for entry in log) for metric in ("acc", "acc_norm")}
    metrics = {metric: word.count("1") / len(word) for metric, word in correct.items()}
    return TaskResult(task, "1", 0, len(log), metrics, {}, correct, answers(log), items)


def test_by_hand() -> None:
    assert (answers(DENSE)["acc"], answers(PRUNED)["acc"]) == ("00000", "01110")
    found, normed = flips([told(DENSE)], [told(PRUNED)])
    assert (found.task, found.metric, normed.metric) == ("boolq", "acc", "acc_norm")
    assert (found.items, found.changed, found.correct_to_wrong, found.wrong_to_correct) == (5, 3, 1, 1)
    assert (found.share_changed, found.share_flipped, found.p_value) == (0.6, 0.4, 1.0)


def test_a_model_with_itself() -> None:
    for found in flips([told(DENSE)], [told(DENSE)]):
        assert (found.changed, found.correct_to_wrong, found.wrong_to_correct, found.p_value) == (0, 0, 0, 1.0)


def test_answers_by_letter() -> None:
    """-2 for "no" is -1 a letter, -2.4 for "yes" -0.8: acc takes the first, acc_norm the second."""
    before, after = [sample(0, [-2.4, -2.0, -9.0], 0)], [sample(0, [-2.4, -1.5, -9.0], 0)]
    assert (answers(before), answers(after)) == ({"acc": "1", "acc_norm": "0"}, {"acc": "1", "acc_norm": "1"})
    plain, normed = flips([told(before)], [told(after)])
    assert plain.changed == 0
    assert (normed.changed, normed.correct_to_wrong) == (1, 1)


def test_answers_of_a_task_that_also_asks_without_the_question() -> None:
    """The second half of its likelihoods is no choice."""
    doubled = sample(0, [-3, -2, -9], 0) | {"acc_mutual_info": 1.0}
    doubled["filtered_resps"] += [(-1, False)] * 3
    doubled["arguments"] *= 2
    assert answers([doubled]) == {"acc": "1", "acc_norm": "0"}


def test_answers_that_the_harness_judged_otherwise() -> None:
    """Letters are counted of choices that the log does not hold where these are questions: acc_norm is left out; and
    where its verdict is that of another choice.
    """
    asked = [(f"question with {word}", " so it goes") for word in ("yes", "no", "perhaps")]
    assert answers([sample(0, [-1, -2, -3], 0, arguments=asked)]) == {"acc": "0"}
    assert answers([sample(0, [-1, -2, -3], 0, target=0)])["acc"] == "0"
    assert "acc" not in answers([sample(0, [-1, -2, -3], 0, target=1)])


def test_likelihoods_that_are_no_numbers() -> None:
    log = [*DENSE[:2], {**DENSE[2], "filtered_resps": [(-1, False), (math.nan, False), (-2, False)]}]
    with pytest.raises(NumericsError, match=r"item 2: the likelihood of an answer is NaN.*--dtype float32"):
        answers(log)


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [(0, 0, 1.0), (0, 5, 0.0625), (1, 5, 14 / 64), (5, 1, 14 / 64), (3, 3, 1.0), (0, 20, 2.0**-19)],
)
def test_mcnemar_exact(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_many_items() -> None:
    """chi-squared with one degree of freedom: 3.841 is 5 %; and there is no jump where it takes over."""
    total = 1_000_000
    gap = math.sqrt(3.8414588 * total) + 1
    assert mcnemar(round((total - gap) / 2), round((total + gap) / 2)) == pytest.approx(0.05, abs=1e-3)
    assert mcnemar(470, 530) == pytest.approx(mcnemar(471, 531), abs=3e-3)
    assert EXACT_UP_TO == 1000
    assert mcnemar(2000, 2000) == 1.0


@pytest.mark.parametrize(
    "change",
    [{"filtered_resps": ["42"]}, {"filtered_resps": [(-3.0, True)]}, {"filtered_resps": ["a long", "text"]}],
    ids=["generated", "one likelihood", "two texts"],
)
def test_tasks_without_choices_are_refused(change: dict[str, Any]) -> None:
    log = [{**entry, **change} for entry in DENSE]
    assert answers(log) == {}
    with pytest.raises(DataError, match="gsm8k is no multiple-choice task"):
        flips([told(log, "gsm8k")], [told(log, "gsm8k")])


@pytest.mark.parametrize(
    "other",
    [
        told(PRUNED[:-1]),
        told(PRUNED, items="others"),
        dataclasses.replace(told(PRUNED), documents="others"),
        told(PRUNED, task="rte"),
        TaskResult("boolq", "1", 0, 5, {"acc": 0.5}, {}, {}, answers(PRUNED), "these"),
    ],
    ids=["fewer items", "other words", "other items", "another task", "not judged item by item"],
)
def test_answers_that_are_not_of_one_task(other: TaskResult) -> None:
    with pytest.raises(DataError, match="boolq: the two models answered other items"):
        flips([dataclasses.replace(told(DENSE), documents="these")], [other])
