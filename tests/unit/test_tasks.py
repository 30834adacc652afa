"""Zero-shot accuracy is the harness's own, on the model in memory as on the directory; what is missing is said
beforehand.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from end_to_end.harness import SAMPLES, write_task
from end_to_end.tiny import run_classic, save_tiny, tiny_model, tiny_tokenizer, write_words

from autoprune.cli.main import classic
from autoprune.errors import DataError, ModelError, RecipeError
from autoprune.evaluation import harness
from autoprune.evaluation.tasks import check_tasks
from autoprune.events import Event, Notice, Phase, Work
from autoprune.recipe.recipe import ZeroShotOptions
from autoprune.report.accuracy import zeroshot_table
from autoprune.results.codec import row_from_json
from autoprune.results.types import TaskResult, ZeroShotResult
from autoprune.run import open as subject
from autoprune.run.api import evaluate, prune

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and the datasets library warn about themselves


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks: one with acc alone, one with both accuracies."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "plain_words", ("acc",), 1.0)
    write_task(folder, "long_words", ("acc", "acc_norm"), 2.0)
    return folder


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Path, ZeroShotResult]:
    """A pruned checkpoint, and what was measured right after it was written."""
    place = tmp_path_factory.mktemp("zeroshot")
    dense = save_tiny(place / "dense")
    options = {
        "save_model": place / "pruned",
        "save_zeroshot": place / "results",
        "tasks": "plain_words,long_words",
        "tasks_path": folder,
    }
    row = prune(dense, prune_method="magnitude", sparsity_ratio=0.5, **options).row
    assert row.zeroshot is not None
    return place, row.zeroshot


def directly(directory: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """The harness itself on a directory."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    raw = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={directory}",
        tasks=["plain_words", "long_words"],
        task_manager=manager,
        device="cpu",
        **options,
    )
    return dict(raw["results"])


def same(result: ZeroShotResult, raw: dict[str, Any]) -> None:
    """To the last digit."""
    assert [task.task for task in result.tasks] == ["plain_words", "long_words"]
    for task in result.tasks:
        for metric, value in task.metrics.items():
            assert value == raw[task.task][f"{metric},none"]
            assert task.errors[metric] == raw[task.task][f"{metric}_stderr,none"]
    assert [sorted(task.metrics) for task in result.tasks] == [["acc"], ["acc", "acc_norm"]]


def test_same_accuracy_as_the_harness_on_the_directory(pruned: tuple[Path, ZeroShotResult], folder: Path) -> None:
    place, result = pruned
    same(result, directly(place / "pruned", folder))
    assert [(t.version, t.num_fewshot, t.samples) for t in result.tasks] == [("1.0", 0, SAMPLES), ("2.0", 0, SAMPLES)]
    assert result.settings["harness"] == lm_eval.__version__


def test_right_and_wrong_are_kept_sample_by_sample(pruned: tuple[Path, ZeroShotResult]) -> None:
    for task in pruned[1].tasks:
        assert set(task.correct) == set(task.metrics)
        for metric, word in task.correct.items():
            assert len(word) == SAMPLES
            assert word.count("1") / SAMPLES == pytest.approx(task.metrics[metric])


def test_same_accuracy_from_a_model_in_memory(folder: Path, tmp_path: Path) -> None:
    """Few samples, and the tokenizer of the user stays as it was."""
    tokenizer = tiny_tokenizer()
    said: list[Event] = []
    options = {
        "tasks": ["plain_words", "long_words"],
        "tasks_path": folder,
        "limit": 7,
        "num_fewshot": 2,
        "save_zeroshot": tmp_path / "results",
        "save_model": tmp_path / "m",
    }
    row = prune(
        tiny_model(), tokenizer=tokenizer, prune_method="magnitude", sparsity_type="2:4", emit=said.append, **options
    ).row
    assert row.zeroshot is not None
    same(row.zeroshot, directly(tmp_path / "m", folder, limit=7, num_fewshot=2))
    assert [task.num_fewshot for task in row.zeroshot.tasks] == [2, 2]
    assert tokenizer.pad_token is None
    assert any(isinstance(event, Notice) and "--limit" in event.text for event in said)


def test_bars_of_the_harness_become_events(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So one bar is drawn on a terminal, none with --quiet, and the harness has its own back afterwards."""
    from lm_eval.models import huggingface
    from tqdm import tqdm

    said: list[Event] = []
    options: dict[str, Any] = {"tasks": ["plain_words"], "tasks_path": folder, "save_zeroshot": tmp_path / "results"}
    capsys.readouterr()
    prune(tiny_model(), tokenizer=tiny_tokenizer(), sparsity_ratio=0, emit=said.append, **options)
    assert capsys.readouterr().err == ""
    steps = [event for event in said if isinstance(event, Work) and event.phase == "running loglikelihood requests"]
    assert steps
    assert {step.total for step in steps} == {3 * SAMPLES}
    assert huggingface.tqdm is tqdm


def test_named_tasks_are_measured_without_being_saved(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From Python beside the perplexities, as a data frame too; on the command line as a table."""
    options: dict[str, Any] = {"tasks": "long_words", "tasks_path": folder}
    text = write_words(tmp_path / "words.txt", 100, 0)
    found = evaluate(tiny_model(), tokenizer=tiny_tokenizer(), eval_data=text, seqlen=16, **options)
    assert len(found) == 1
    assert found.zeroshot is not None
    frame = found.zeroshot.to_pandas()
    assert list(frame.columns) == [
        "task",
        "acc",
        "acc_norm",
        "acc stderr",
        "acc_norm stderr",
        "version",
        "num_fewshot",
        "samples",
    ]
    assert list(frame.task) == ["long_words"]
    save_tiny(tmp_path / "dense")
    flags = [
        "--model",
        str(tmp_path / "dense"),
        "--sparsity_ratio",
        "0",
        "--tasks",
        "long_words",
        "--tasks_path",
        str(folder),
    ]
    answer = run_classic(capsys, flags)
    assert answer.status == 0, answer.err
    assert "long_words" in answer.out
    assert "Perplexity" not in answer.out


def test_model_that_does_not_fit_is_refused_before_work_begins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness needs all of it; perplexity and pruning would not."""
    monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.0)
    dense, said = save_tiny(tmp_path / "dense"), list[Event]()
    for options in (
        {"sparsity_ratio": 0},
        {"prune_method": "magnitude", "sparsity_ratio": 0.5, "save_model": tmp_path / "out"},
    ):
        with pytest.raises(ModelError, match="does not fit into memory, and lm-evaluation-harness needs all of it"):
            prune(dense, tasks="plain_words", tasks_path=folder, emit=said.append, **options)
    assert {event.name for event in said if isinstance(event, Phase)} == {"task plain_words"}


def test_files(pruned: tuple[Path, ZeroShotResult]) -> None:
    """An aligned table whose means say what they average, and JSON with everything."""
    place, result = pruned
    row = row_from_json(json.loads((place / "results/zeroshot_magnitude_50pct.json").read_text()))
    assert row.zeroshot == result
    assert row.settings["zeroshot"]["tasks"] == ["plain_words", "long_words"]
    text = (place / "results/zeroshot_magnitude_50pct.txt").read_text()
    header = next(line for line in text.splitlines() if line.startswith("task"))
    mean = next(line for line in text.splitlines() if line.startswith("mean of the column"))
    assert header.split() == ["task", "version", "shots", "samples", "acc", "acc_norm"]
    assert "(of 2)" in mean
    assert "(of 1)" in mean
    assert f"harness {lm_eval.__version__}" in text


def test_table_of_other_metrics() -> None:
    """Each has its own column; what is no share is not shown in percent and has no mean."""
    tasks = (
        TaskResult("reading", "1", 0, 9, {"acc": 0.5, "perplexity": 12.5}, {"acc": 0.1}),
        TaskResult("sums", "3", 5, 9, {"exact_match,strict-match": 0.25}, {}),
    )
    grid = zeroshot_table(ZeroShotResult(tasks))
    assert grid.header[4:] == ("acc", "acc_norm", "perplexity", "exact_match,strict-match")
    assert grid.rows[0][4:] == ("50.00 ± 10.00", "-", "12.50", "-")
    assert grid.rows[2][4:] == ("50.00 (of 1)", "-", "-", "25.00 (of 1)")


def test_unknown_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own list is left out of this test, for reading it takes long."""
    listed = harness.listed
    monkeypatch.setattr(harness, "listed", lambda place, stamp, *, defaults: listed(place, stamp, defaults=False))
    with pytest.raises(
        DataError, match="--tasks no_such_task: lm-evaluation-harness knows no task of that name nor in --tasks_path"
    ):
        check_tasks(ZeroShotOptions(tasks=("plain_words", "no_such_task"), tasks_path=str(folder)))
    with pytest.raises(DataError, match="a task of your own needs --tasks_path FOLDER"):
        check_tasks(ZeroShotOptions(tasks=("no_such_task",)))


def test_unknown_folder() -> None:
    with pytest.raises(DataError, match="--tasks_path nowhere: there is no such directory"):
        check_tasks(ZeroShotOptions(tasks=("plain_words",), tasks_path="nowhere"))


def test_data_that_can_not_be_had_is_said_before_work_begins(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(tmp_path, "gone_words", ("acc",), 1.0)
    (tmp_path / "gone_words.jsonl").unlink()
    save_tiny(tmp_path / "dense")
    flags = [
        "--model",
        str(tmp_path / "dense"),
        "--prune_method",
        "magnitude",
        "--sparsity_ratio",
        "0.5",
        "--save_zeroshot",
        str(tmp_path / "out"),
    ]
    answer = run_classic(capsys, [*flags, "--tasks", "gone_words", "--tasks_path", str(tmp_path)])
    assert answer.status == 2
    assert "error: --tasks gone_words: its data can't be had" in answer.err
    assert "pruning" not in answer.err


def test_missing_harness(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match="pip install lm-eval"):
        check_tasks(ZeroShotOptions(tasks=("plain_words",), tasks_path=str(folder)))
    assert classic(["--model", "demo", "--sparsity_ratio", "0", "--save_zeroshot", "unused"]) == 2
    assert "pip install lm-eval" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("unsafe_code: true", "lm-evaluation-harness calls it unsafe"),
        ("metric_list: [{metric: nope, aggregation: mean, higher_is_better: true}]", "knows no metric 'nope'"),
    ],
)
def test_what_the_harness_would_refuse_in_the_end_is_refused_before_the_work(
    tmp_path: Path, entry: str, says: str
) -> None:
    write_task(tmp_path, "mine", ("acc",), 1.0)
    lines = (tmp_path / "mine.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(entry.partition(":")[0] + ":")]
    (tmp_path / "mine.yaml").write_text("\n".join([*kept, entry]))
    with pytest.raises(DataError, match=f"--tasks mine: .*{says}"):
        check_tasks(ZeroShotOptions(tasks=("mine",), tasks_path=str(tmp_path)))
