"""Flips between two models that the harness asks the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from end_to_end.harness import SAMPLES, write_task
from end_to_end.tiny import save_tiny, write_words

from autoprune import compare, evaluate, prune
from autoprune.errors import DataError

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and the datasets library warn about themselves


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a pruned one, and two tasks: one with acc alone, one with both accuracies."""
    place = tmp_path_factory.mktemp("flips")
    prune(save_tiny(place / "dense"), prune_method="magnitude", sparsity_ratio=0.5, save_model=place / "pruned")
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


def test_flips_need_choices(place: Path) -> None:
    text = (place / "tasks" / "plain_words.yaml").read_text()
    text = text.replace("multiple_choice", "generate_until").replace("plain_words\n", "told_words\n")
    text = text.replace("doc_to_choice: choices\n", "").replace("metric: acc", "metric: exact_match")
    (place / "tasks" / "told_words.yaml").write_text(text)
    with pytest.raises(DataError, match="task told_words is no multiple-choice task"):
        compare(place / "dense", place / "pruned", tasks="told_words", tasks_path=place / "tasks")
