"""What pruning costs is said by the run itself: the dense model and the first pass beside it, time, memory, sizes."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import autoprune
from autoprune.cli.main import main
from autoprune.evaluation.perplexity import perplexity
from autoprune.results.codec import read_rows
from autoprune.results.types import EvaluationRow
from autoprune.run import measure as measuring
from autoprune.storage import size as sizes
from autoprune.storage.size import file_size
from end_to_end.conftest import Run
from end_to_end.tiny import Texts, change_weights, plain_perplexity, save_tiny, tiny_model, tiny_tokenizer

WANDA = {"prune_method": "wanda", "sparsity_ratio": 0.5, "nsamples": 8, "seqlen": 16}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are measured, as the progress names them."""
    names: list[str] = []

    def watched(store: Any, windows: Any, source: str, **named: Any) -> Any:
        names.append(source)
        return perplexity(store, windows, source, **named)

    monkeypatch.setattr(measuring, "perplexity", watched)
    return names


def row_of(model: Any, texts: Texts, **options: Any) -> EvaluationRow:
    """Wanda at 50 % on the tiny texts, from Python."""
    chosen = {**WANDA, "calibration_data": str(texts.calibration), "eval_data": str(texts.heldout), **options}
    return autoprune.prune(model, **chosen).row


@pytest.mark.parametrize("saved", [False, True])
def test_dense_model_is_measured_once_and_for_all(
    tiny: Path, texts: Texts, tmp_path: Path, seen: list[str], own_cache: Path, saved: bool
) -> None:
    """Whether it is pruned in memory or streamed; from the cache the second time, whatever it is called there."""
    options = {"save_model": str(tmp_path / "out"), "overwrite": True} if saved else {}
    row = row_of(tiny, texts, **options)
    (dense,) = row.beside
    assert seen == ["heldout.txt of the dense model", "heldout.txt"]
    assert dense.method == "dense"
    assert dense.perplexity[0].source == "heldout.txt"
    assert dense.perplexity[0].perplexity == pytest.approx(plain_perplexity(tiny, texts.heldout), rel=1e-12)
    assert dense.change == pytest.approx(row.perplexity[0].perplexity / dense.perplexity[0].perplexity - 1)
    copy = save_tiny(tmp_path / "copy")
    seen.clear()
    assert row_of(copy, texts, **options).beside == row.beside
    assert seen == ["heldout.txt"]
    assert len(list(own_cache.glob("dense-*.json"))) == 1


def test_eval_teaches_prune_and_never_asks_the_cache(tiny: Path, texts: Texts, seen: list[str]) -> None:
    for _ in range(2):
        autoprune.evaluate(tiny, eval_data=str(texts.heldout), seqlen=16)
    assert seen == ["heldout.txt"] * 2
    seen.clear()
    assert row_of(tiny, texts).beside
    assert seen == ["heldout.txt"]


def test_other_weights_windows_and_precisions_are_measured_anew(texts: Texts, tmp_path: Path, seen: list[str]) -> None:
    model = save_tiny(tmp_path / "model")
    row_of(model, texts)
    for changed in ({"seqlen": 8}, {"dtype": "bfloat16"}, {}):
        if not changed:
            change_weights(model, lambda held: held["model.norm.weight"].add_(0.5))
        seen.clear()
        row_of(model, texts, **changed)
        assert seen == ["heldout.txt of the dense model", "heldout.txt"]


def test_a_streamed_dense_model_says_so(
    tiny: Path, texts: Texts, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = row_of(tiny, texts, no_dense=True)
    monkeypatch.setattr("autoprune.run.open.RESIDENT_SHARE", 0.0)
    row = row_of(tiny, texts, save_model=str(tmp_path / "out"))
    assert seen == ["heldout.txt", "heldout.txt of the dense model, block by block", "heldout.txt"]
    assert (in_memory.beside, row.perplexity) == ((), in_memory.perplexity)
    assert row.beside[0].perplexity[0].perplexity == pytest.approx(plain_perplexity(tiny, texts.heldout), rel=1e-6)


def test_a_model_in_memory_is_measured_before_it_is_changed(texts: Texts, tiny: Path, own_cache: Path) -> None:
    row = row_of(tiny_model(), texts, tokenizer=tiny_tokenizer())
    assert row.beside[0].perplexity == row_of(tiny, texts).beside[0].perplexity
    assert row.perplexity != row.beside[0].perplexity
    assert len(list(own_cache.glob("*"))) == 2, "nothing on disk tells a model in memory from another"


@pytest.mark.parametrize("first", ["magnitude", "wanda"])
def test_the_first_pass_stands_beside_it_where_it_was_measured(tiny: Path, texts: Texts, first: str) -> None:
    barber = {"prune_barber": True, "prune_granularity": "block", "threshold": 0.5, "prune_method": first}
    assert [r.method for r in row_of(tiny, texts, **barber).beside] == ["dense"]
    alone = row_of(tiny, texts, prune_method=first)
    _, before = row_of(tiny, texts, **barber).beside
    assert (before.method, before.perplexity) == (first, alone.perplexity)
    assert [r.method for r in row_of(tiny, texts, **barber, seed=1).beside] == ["dense"]
    assert [r.method for r in row_of(tiny, texts, **barber, nsamples=4).beside] == ["dense"]


def test_unusable_cache_costs_time_alone(tiny: Path, texts: Texts, own_cache: Path, run: Run, seen: list[str]) -> None:
    own_cache.write_text("no folder")
    answer = run(tiny, no_dense=None)
    assert answer.err.count("so nothing is kept for later runs; AUTOPRUNE_CACHE=DIR names another place") == 1
    assert "dense" in answer.out
    own_cache.unlink()
    row_of(tiny, texts)
    for file in own_cache.glob("*.json"):
        file.write_text('{"value": {"source": "x"}}')
    seen.clear()
    row_of(tiny, texts)
    assert seen == ["heldout.txt of the dense model", "heldout.txt"]


def test_dense_losses_that_are_no_numbers_fail_no_run(
    texts: Texts, tiny: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    def overflows(store: Any, windows: Any, source: str, **named: Any) -> Any:
        if "dense" in source:
            raise autoprune.NumericsError(f"the loss on {source} is nan")
        return perplexity(store, windows, source, **named)

    monkeypatch.setattr(measuring, "perplexity", overflows)
    answer = run(tiny, no_dense=None)
    assert "the dense model was not measured: the loss on heldout.txt of the dense model is nan" in answer.err
    assert "vs dense" not in answer.out


def test_command_line_says_it_all(run: Run, tiny: Path, tmp_path: Path) -> None:
    places = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
    answer = run(tiny, **places, no_dense=None)
    assert "vs dense" in answer.out
    assert [line.split()[:3] for line in answer.out.splitlines() if line.startswith("dense")] == [
        ["dense", "dense", "-"]
    ]
    assert "took " in answer.out and "peak memory " in answer.out
    assert "weights: stored " in answer.out and "compressed about " in answer.out
    (record,) = (tmp_path / "ppl").glob("*.json")
    raw = json.loads(record.read_text(encoding="utf-8"))
    assert raw["beside"][0]["method"] == "dense"
    assert raw["beside"][0]["change"] != 0
    assert raw["cost"]["seconds"] > raw["cost"]["phases"]["pruning"] > 0
    assert raw["cost"]["peak_bytes"] > 10_000_000
    assert 0 < raw["size"]["compressed"] < raw["size"]["stored"]
    assert read_rows([record])[0].beside[0].perplexity[0].source == "heldout.txt"
    page = tmp_path / "page.html"
    assert main(["report", str(record), "--format", "html", "--out", str(page)]) == 0
    assert "vs dense" in page.read_text(encoding="utf-8")
    assert "dense" not in run(tiny).out


def test_size_when_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate from a sample is that of the whole."""
    model = save_tiny(tmp_path / "model", tiny_model(hidden_size=256, vocab_size=128))
    change_weights(model, lambda held: [t.masked_fill_(torch.rand(t.shape) < 0.5, 0) for t in held.values()])
    whole = [file.read_bytes() for file in model.glob("*.safetensors")]
    exact = sum(len(zlib.compress(data)) for data in whole)
    monkeypatch.setattr(sizes, "PIECE", 4096)
    found = file_size(model)
    assert found.stored == sum(map(len, whole))
    assert math.isclose(found.compressed, exact, rel_tol=0.1)
    assert found.compressed < 0.75 * found.stored
