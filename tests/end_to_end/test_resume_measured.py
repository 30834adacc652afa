"""--resume measures nothing twice: perplexities that were saved before a stop are taken up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoprune.evaluation.perplexity import perplexity
from autoprune.run import closing
from autoprune.run import measure as measuring
from autoprune.storage.identity import files_of
from end_to_end.conftest import Run
from end_to_end.test_resume_same import damp
from end_to_end.tiny import Answer, Texts, change_weights, contents, flags, run_classic, save_tiny, write_words


@pytest.fixture
def two_texts(texts: Texts, tmp_path: Path) -> dict[str, str]:
    """Something to stop between."""
    return {"eval_data": f"{texts.heldout},{write_words(tmp_path / 'second.txt', 200, 3)}"}


@pytest.fixture
def measuring_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[str]]:
    """Notes which texts are measured; stops the run at one of them."""

    def watch(stop: str | None) -> list[str]:
        seen: list[str] = []

        def watched(store: Any, windows: Any, source: str, **named: Any) -> Any:
            seen.append(source)
            if source == stop:
                raise KeyboardInterrupt
            return perplexity(store, windows, source, **named)

        monkeypatch.setattr(measuring, "perplexity", watched)
        return seen

    return watch


def values(folder: Path) -> dict[str, float]:
    """Perplexities as they were saved."""
    raw = json.loads(next(folder.glob("log_*.json")).read_text(encoding="utf-8"))
    return {result["source"]: result["perplexity"] for result in raw["perplexity"]}


def test_evaluation_goes_on_where_it_stopped(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tiny: Path,
    texts: Texts,
    tmp_path: Path,
    two_texts: dict[str, str],
    measuring_of: Any,
) -> None:
    places = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
    measuring_of("second.txt")
    assert run_classic(capsys, flags(tiny, texts, **{**two_texts, **places})).status == 130
    checkpoint = contents(tmp_path / "out")
    assert [path.name for path in (tmp_path / "ppl").iterdir()] == ["log_wanda_50pct.unfinished.json"]
    seen = measuring_of(None)
    answer = run(tiny, **{**two_texts, **places}, resume=True)
    assert seen == ["second.txt"]
    assert "perplexity heldout.txt: measured before" in answer.err
    assert "pruning" not in answer.err.splitlines()
    assert contents(tmp_path / "out") == checkpoint
    assert sorted(path.suffix for path in (tmp_path / "ppl").iterdir()) == [".json", ".txt"]
    run(tiny, **{**two_texts, "save_model": tmp_path / "other", "save_ppl": tmp_path / "other-ppl"})
    assert values(tmp_path / "ppl") == values(tmp_path / "other-ppl")
    assert list(values(tmp_path / "ppl")) == ["heldout.txt", "second.txt"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({}, ["second.txt"]),
        ({"resume": None}, ["heldout.txt", "second.txt"]),
        ({"dtype": "bfloat16"}, ["heldout.txt", "second.txt"]),
        ({"seqlen": 12}, ["heldout.txt", "second.txt"]),
        ({"model": "changed"}, ["heldout.txt", "second.txt"]),
    ],
    ids=["same", "not resumed", "dtype", "windows", "weights"],
)
def test_only_what_is_the_very_same_is_not_measured_again(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    texts: Texts,
    tmp_path: Path,
    two_texts: dict[str, str],
    measuring_of: Any,
    changed: dict[str, Any],
    again: list[str],
) -> None:
    model = save_tiny(tmp_path / "model")
    options: dict[str, Any] = {**two_texts, "sparsity_ratio": 0, "save_ppl": tmp_path / "ppl", "resume": True}
    measuring_of("second.txt")
    assert run_classic(capsys, flags(model, texts, **options)).status == 130
    if changed.get("model"):
        change_weights(model, damp)
        changed = {}
    seen = measuring_of(None)
    run(model, **{**options, **changed})
    assert seen == again


def test_perplexities_survive_a_stop_in_zero_shot(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tiny: Path,
    texts: Texts,
    tmp_path: Path,
    measuring_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
    seen = measuring_of(None)
    with monkeypatch.context() as patch:
        patch.setattr(closing, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, **options)).status == 130
    assert seen == ["heldout.txt"]
    answer: Answer = run(tiny, **options, resume=True)
    assert seen == ["heldout.txt"]
    assert "is complete already; going on with what comes after" in answer.err
    assert list(values(tmp_path / "ppl")) == ["heldout.txt"]


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja", "notes.md"]
)
def test_answers_depend_on_all_that_lies_beside_the_weights(tmp_path: Path, file: str) -> None:
    """A task's figures are taken up only while tokenizer, template and generation_config.json are what they were."""
    model = save_tiny(tmp_path / "model")
    before = files_of(model)
    (model / "README.md").write_text("a card is no part of it")
    assert files_of(model) == before
    with (model / file).open("a") as beside:
        beside.write("\n")
    assert files_of(model) != before
