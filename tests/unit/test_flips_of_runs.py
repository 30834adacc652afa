"""Flips between two models that the harness asks the same questions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from end_to_end.harness import SAMPLES, write_task
from end_to_end.tiny import save_tiny, tiny_tokenizer, write_words

from autoprune import compare, evaluate, prune
from autoprune.errors import DataError

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and the datasets library warn about themselves


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a pruned one, and two tasks: one with acc alone, one with both accuracies."""
    place = tmp_path_factory.mktemp("flips")
    dense, tokenizer = save_tiny(place / "dense"), tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}w1 {{ turn.content }} {% endfor %}"
    tokenizer.save_pretrained(dense)
    prune(dense, prune_method="magnitude", sparsity_ratio=0.5, save_model=place / "pruned")
    (place / "tasks").mkdir()
    write_task(place / "tasks", "plain_words", ("acc",), 1.0)
    write_task(place / "tasks", "long_words", ("acc", "acc_norm"), 2.0)
    return place


def test_flips_are_counted_on_the_same_items(place: Path) -> None:
    """As the words of right and wrong say; with perplexity's texts only if they are named."""
    options: dict[str, Any] = {"tasks": "plain_words,long_words", "tasks_path": place / "tasks"}
    text = write_words(place / "few.txt", 40, 0)
    results = [evaluate(place / name, eval_data=text, seqlen=16, **options).zeroshot for name in ("dense", "pruned")]
    (model,) = compare(place / "dense", place / "pruned", **options).models
    assert model.shifts == {}
    metrics = [("plain_words", "acc"), ("long_words", "acc"), ("long_words", "acc_norm")]
    assert [(flip.task, flip.metric) for flip in model.flips] == metrics
    for flip in model.flips:
        ours, theirs = (next(t for t in r.tasks if t.task == flip.task).correct[flip.metric] for r in results if r)
        pairs = list(zip(ours, theirs, strict=True))
        counts = (pairs.count(("1", "0")), pairs.count(("0", "1")))
        assert (flip.items, flip.correct_to_wrong, flip.wrong_to_correct) == (SAMPLES, *counts)
        assert sum(counts) <= flip.changed <= SAMPLES
    assert any(flip.changed for flip in model.flips)


def chosen(directory: Path, folder: Path, task: str, *, chat: bool) -> dict[str, list[tuple[int, bool]]]:
    """From the harness's own log, by metric: which choice has the highest likelihood, or likelihood for each letter,
    and whether it is right.
    """
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    raw = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={directory}",
        tasks=[task],
        task_manager=manager,
        device="cpu",
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    found: dict[str, list[tuple[int, bool]]] = {"acc": [], "acc_norm": []}
    for sample in sorted(raw["samples"][task], key=lambda sample: sample["doc_id"]):
        choices = sample["doc"]["choices"]
        scores = [answer[0][0] for answer in sample["resps"]]
        for metric, letters in (("acc", [1] * len(choices)), ("acc_norm", list(map(len, choices)))):
            by = [float(score) / count for score, count in zip(scores, letters, strict=True)]
            found[metric].append((by.index(max(by)), by.index(max(by)) == sample["doc"]["answer"]))
    return found


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "in the chat template"])
def test_flips_by_the_harness_s_own_log(place: Path, chat: bool) -> None:
    """In a chat template nothing stands before an answer, so its letters are others."""
    ours, theirs = (chosen(place / name, place / "tasks", "long_words", chat=chat) for name in ("dense", "pruned"))
    asked: dict[str, Any] = {"tasks": "long_words", "tasks_path": place / "tasks", "apply_chat_template": chat}
    (model,) = compare(place / "dense", place / "pruned", **asked).models
    assert [flip.metric for flip in model.flips] == ["acc", "acc_norm"]
    for flip in model.flips:
        pairs = list(zip(ours[flip.metric], theirs[flip.metric], strict=True))
        down, up = (sum(a == right and b != right for (_, a), (_, b) in pairs) for right in (True, False))
        assert flip.changed == sum(a != b for (a, _), (b, _) in pairs)
        assert (flip.correct_to_wrong, flip.wrong_to_correct) == (down, up)
        tail = sum(math.comb(down + up, i) for i in range(min(down, up) + 1)) / 2 ** (down + up)
        assert flip.p_value == pytest.approx(min(1.0, 2 * tail))


def test_flips_of_a_group(place: Path) -> None:
    """Those of its members together."""
    (place / "tasks" / "words.yaml").write_text(
        "group: words\ntask: [plain_words, long_words]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\nmetadata: {version: 1.0}\n"
    )
    options: dict[str, Any] = {"tasks_path": place / "tasks"}
    alone, both = (
        compare(place / "dense", place / "pruned", tasks=tasks, **options).models[0].flips
        for tasks in ("plain_words,long_words", "words")
    )
    (group,) = both
    assert (group.task, group.metric, group.items) == ("words", "acc", 2 * SAMPLES)
    assert group.changed == sum(flip.changed for flip in alone if flip.metric == "acc")


def test_flips_need_choices(place: Path) -> None:
    text = (place / "tasks" / "plain_words.yaml").read_text()
    text = text.replace("multiple_choice", "generate_until").replace("plain_words\n", "told_words\n")
    text = text.replace("doc_to_choice: choices\n", "").replace("metric: acc", "metric: exact_match")
    (place / "tasks" / "told_words.yaml").write_text(text)
    with pytest.raises(DataError, match="task told_words is no multiple-choice task"):
        compare(place / "dense", place / "pruned", tasks="told_words", tasks_path=place / "tasks")
