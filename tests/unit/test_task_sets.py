"""Sets of tasks, chat templates, generated answers, and tasks that are not asked a second time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from end_to_end.harness import write_generated, write_task
from end_to_end.tiny import save_tiny, tiny_model, tiny_tokenizer

from autoprune import compare, prune
from autoprune.errors import DataError, ModelError, RecipeError
from autoprune.evaluation import harness
from autoprune.evaluation.harness import Respondent, no_data
from autoprune.evaluation.tasks import check_tasks
from autoprune.events import Event, Notice
from autoprune.recipe import task_sets
from autoprune.recipe.options import ZEROSHOT_TASKS, ZeroShotOptions
from autoprune.recipe.task_sets import Asked, asked_of
from autoprune.report.accuracy import metrics_of
from autoprune.report.publish import published
from autoprune.results.codec import read_rows
from autoprune.results.tidy import Results

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and the datasets library warn about themselves
TEMPLATE = "{% for turn in messages %}w{{ loop.index0 }} {{ turn.content }} {% endfor %}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model and one whose tokenizer has a chat template; tasks of choices and of generated words."""
    place = tmp_path_factory.mktemp("sets")
    save_tiny(place / "dense")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_tiny(place / "chat")
    tokenizer.save_pretrained(place / "chat")
    (place / "tasks").mkdir()
    write_task(place / "tasks", "plain_words", ("acc",), 1.0)
    write_task(place / "tasks", "long_words", ("acc", "acc_norm"), 2.0)
    write_generated(place / "tasks", "told_words")
    return place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None, bool]]:
    """Name, examples and chat template of every task that a model is asked."""
    seen: list[tuple[str, int | None, bool]] = []
    original = Respondent.ask

    def watched(self: Respondent, task: Asked, *, chat: bool, **more: Any) -> dict[str, Any]:
        seen.append((task.name, task.shots, chat))
        return original(self, task, chat=chat, **more)

    monkeypatch.setattr(Respondent, "ask", watched)
    return seen


@pytest.fixture
def own_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets with the same names and tasks that are there without a network."""
    monkeypatch.setattr(
        task_sets,
        "SETS",
        {"classic": {"plain_words": None}, "knowledge": {"long_words": 2}, "reasoning": {"told_words": 1}},
    )


def test_what_the_sets_hold() -> None:
    """As usually reported; what is asked for outright counts more, and a task comes once."""
    assert [task.name for task in asked_of(["classic"], None, chat=False)] == list(ZEROSHOT_TASKS)
    found = asked_of(["boolq", "reasoning", "knowledge", "mmlu"], None, chat=False)
    assert found == (
        Asked("boolq", None, False),
        Asked("gsm8k", 5, None),
        Asked("ifeval", 0, None),
        Asked("mmlu", 5, False),
    )
    assert {task.shots for task in asked_of(["classic", "knowledge"], 3, chat=False)} == {3}
    assert {task.chat for task in asked_of(["reasoning", "boolq"], None, chat=True)} == {True}


def test_the_harness_has_every_task_of_the_sets() -> None:
    known = harness.task_manager([], None).all_tasks
    assert {name for members in task_sets.SETS.values() for name in members} <= set(known)


def test_sets_are_measured(place: Path, asked: list[Any], own_sets: None, tmp_path: Path) -> None:
    """Mixed with single tasks, from a model that was pruned and saved, and from one in memory; as the harness does
    on the directory.
    """
    options: dict[str, Any] = {"tasks": "reasoning,knowledge,plain_words", "tasks_path": place / "tasks", "limit": 5}
    made = prune(
        place / "chat", prune_method="magnitude", sparsity_ratio=0.5, save_model=tmp_path / "out", **options
    ).row
    assert asked == [("told_words", 1, True), ("long_words", 2, False), ("plain_words", None, False)]
    assert made.zeroshot is not None
    assert [task.num_fewshot for task in made.zeroshot.tasks] == [1, 2, 0]
    assert made.zeroshot.settings["in_chat_template"] == "told_words"
    assert "In the chat template: told_words." in published([made], "md")
    told = made.zeroshot.tasks[0]
    assert told.metrics.keys() == {"exact_match"}
    assert told.chosen == {}
    assert metrics_of(Results([made])) == ["acc", "acc_norm", "exact_match"]
    manager = harness.task_manager(["told_words"], str(place / "tasks"))
    raw = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'out'}",
        tasks=["told_words"],
        task_manager=manager,
        device="cpu",
        num_fewshot=1,
        limit=5,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    assert raw["samples"]["told_words"][0]["arguments"][0][0].startswith("w0 ")
    assert told.metrics["exact_match"] == raw["results"]["told_words"]["exact_match,none"]
    tokenizer = tiny_tokenizer()
    again = prune(
        tiny_model(),
        tokenizer=tokenizer,
        prune_method="magnitude",
        sparsity_ratio=0.5,
        **{**options, "tasks": "reasoning"},
    ).row.zeroshot
    assert again is not None
    assert asked[-1] == ("told_words", 1, False)  # without a template there is none to use


def test_generated_answers_are_those_of_the_pruned_model(place: Path, tmp_path: Path) -> None:
    """Word by word what transformers generates from the saved model."""
    seen: list[str] = []
    original = Respondent.ask

    def watched(self: Respondent, *args: Any, **more: Any) -> dict[str, Any]:
        raw = original(self, *args, **more)
        seen.extend(sample["resps"][0][0] for sample in raw["samples"]["told_words"])
        return raw

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Respondent, "ask", watched)
        options = {"tasks": "told_words", "tasks_path": place / "tasks", "limit": 4}
        prune(place / "dense", prune_method="magnitude", sparsity_ratio=0.5, save_model=tmp_path / "out", **options)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    samples = [json.loads(line) for line in (place / "tasks" / "told_words.jsonl").read_text().splitlines()[:4]]
    for sample, answer in zip(samples, seen, strict=True):
        ids = tokenizer(sample["question"], return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert tokenizer.decode(made, skip_special_tokens=True) == answer


def test_chat_template_that_is_not_there(place: Path, tmp_path: Path) -> None:
    """Refused before pruning; of a model that has one all tasks go through it."""
    options: dict[str, Any] = {"tasks": "plain_words", "tasks_path": place / "tasks", "apply_chat_template": True}
    with pytest.raises(ModelError, match="--apply_chat_template: the model's tokenizer has no chat template"):
        prune(place / "dense", prune_method="magnitude", sparsity_ratio=0.5, save_model=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match="--apply_chat_template is about zero-shot tasks"):
        prune(place / "dense", prune_method="magnitude", sparsity_ratio=0.5, apply_chat_template=True)


def test_chat_template_changes_the_questions(place: Path, asked: list[Any]) -> None:
    options: dict[str, Any] = {"sparsity_ratio": 0, "tasks": "plain_words", "tasks_path": place / "tasks"}
    plain, put = (
        prune(place / "chat", **options, **more).row.zeroshot for more in ({}, {"apply_chat_template": True})
    )
    assert plain is not None
    assert put is not None
    assert [chat for _, _, chat in asked] == [False, True]
    assert plain.tasks[0].items != put.tasks[0].items
    assert put.settings["apply_chat_template"] is True


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stops the run when a task is asked."""

    def at(name: str) -> None:
        original = Respondent.ask

        def watched(self: Respondent, task: Asked, **more: Any) -> dict[str, Any]:
            if task.name == name:
                raise KeyboardInterrupt
            return original(self, task, **more)

        monkeypatch.setattr(Respondent, "ask", watched)

    return at


def test_finished_tasks_are_not_asked_again(
    place: Path, tmp_path: Path, stopped: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop between two tasks; the table is that of a run that was not stopped."""
    tasks = {"tasks": "plain_words,long_words", "tasks_path": place / "tasks"}
    options: dict[str, Any] = {"prune_method": "magnitude", "sparsity_ratio": 0.5, **tasks}
    whole = prune(place / "dense", save_model=tmp_path / "whole", **options).row.zeroshot
    places = {"save_model": tmp_path / "out", "save_zeroshot": tmp_path / "results"}
    with monkeypatch.context():
        stopped("long_words")
        with pytest.raises(KeyboardInterrupt):
            prune(place / "dense", **places, **options)
    monkeypatch.undo()
    assert list((tmp_path / "results").glob("zeroshot_*.unfinished.json"))
    with pytest.raises(DataError, match="no log_"):  # what is unfinished is no result
        read_rows([tmp_path / "results"])
    stopped("plain_words")
    said: list[Event] = []
    result = prune(place / "dense", resume=True, emit=said.append, **places, **options)
    assert result.row.zeroshot == whole
    assert [e.text for e in said if isinstance(e, Notice) and "before" in e.text] == [
        "task plain_words: measured before"
    ]
    assert not list((tmp_path / "results").glob("*unfinished*"))


def test_finished_tasks_of_a_comparison(
    place: Path, tmp_path: Path, stopped: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(place / "dense", prune_method="magnitude", sparsity_ratio=0.5, save_model=tmp_path / "out")
    options: dict[str, Any] = {"tasks": "plain_words,long_words", "tasks_path": place / "tasks"}
    whole = compare(place / "dense", tmp_path / "out", **options)
    stopped("long_words")
    with pytest.raises(KeyboardInterrupt):
        compare(place / "dense", tmp_path / "out", save=tmp_path / "saved", **options)
    monkeypatch.undo()
    said: list[Event] = []
    again = compare(
        place / "dense", tmp_path / "out", save=tmp_path / "saved", resume=True, emit=said.append, **options
    )
    assert again.models == whole.models
    assert sum(isinstance(e, Notice) and "plain_words: measured before" in e.text for e in said) == 1


def test_a_package_that_a_task_needs(tmp_path: Path) -> None:
    """A task whose own code imports what is not there is told so, and not that its data can't be had."""
    write_task(tmp_path, "mine", ("acc",), 1.0)
    (tmp_path / "own.py").write_text("import no_such_package_at_all\n\ndef text(doc):\n    return doc['question']\n")
    path = tmp_path / "mine.yaml"
    path.write_text(path.read_text().replace('doc_to_text: "{{question}}"', "doc_to_text: !function own.text"))
    with pytest.raises(RecipeError, match=r"--tasks mine: .*needs the package no_such_package_at_all"):
        check_tasks(ZeroShotOptions(tasks=("mine",), tasks_path=str(tmp_path)))
    assert isinstance(no_data("x", OSError("no network")), DataError)


def test_a_group_of_groups_is_one_line(place: Path, tmp_path: Path) -> None:
    """As MMLU is: its mean, and the answers to all of its items one behind the other."""
    for name in ("plain_words", "long_words"):
        write_task(tmp_path, name, ("acc",), 1.0)
    for name, members in (("outer", ["inner", "long_words"]), ("inner", ["plain_words"])):
        listed = "".join(f"  - {member}\n" for member in members)
        means = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\ntask:\n{listed}{means}metadata: {{version: 1}}\n")
    options: dict[str, Any] = {"sparsity_ratio": 0, "tasks_path": tmp_path}
    whole, single = (
        prune(place / "dense", tasks=tasks, **options).row.zeroshot for tasks in ("outer", "plain_words,long_words")
    )
    assert whole is not None
    assert single is not None
    (group,) = whole.tasks
    assert group.task == "outer"
    assert group.metrics["acc"] == pytest.approx(sum(task.metrics["acc"] for task in single.tasks) / 2)
    assert group.correct["acc"] == "".join(task.correct["acc"] for task in single.tasks)
    assert group.chosen["acc"] == "".join(task.chosen["acc"] for task in single.tasks)


def test_generated_answers_do_not_flip(place: Path) -> None:
    with pytest.raises(DataError, match="told_words is no multiple-choice task"):
        compare(place / "dense", place / "dense", tasks="told_words", tasks_path=place / "tasks")
