"""Named protocols fix calibration and evaluation at once; what was measured or cut once is not made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import change_weights, save_tiny, tiny_model, tiny_tokenizer, write_words

import autoprune
from autoprune.data.cache import VARIABLE, cached_windows, keep
from autoprune.data.windows import Windows
from autoprune.errors import RecipeError
from autoprune.evaluation import perplexity as module
from autoprune.events import Event
from autoprune.recipe.recipe import PROTOCOLS, CalibrationOptions, Recipe, recipe_from_flat, validated

HALF = {"model": "demo", "sparsity_ratio": 0.5}


@pytest.mark.parametrize(
    ("name", "seqlen", "texts"),
    [
        ("wanda-2048", 2048, ("wikitext2",)),
        ("wanda-4096", 4096, ("wikitext2",)),
        ("alps", 2048, ("wikitext2", "ptb", "c4")),
    ],
)
def test_protocol(name: str, seqlen: int, texts: tuple[str, ...]) -> None:
    """Calibration and evaluation are the paper's, the seed is free, and the recipe says so."""
    recipe = recipe_from_flat({**HALF, "protocol": name, "seed": 3})
    chosen = recipe.calibration
    assert (chosen.calibration_data, chosen.nsamples, chosen.seqlen, chosen.seed) == ("c4", 128, seqlen, 3)
    assert recipe.evaluation.eval_data == texts
    assert recipe.to_dict()["calibration"]["protocol"] == name


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("seqlen", 1024, "1024"),
        ("nsamples", 64, "64"),
        ("calibration_data", "wikitext2", "wikitext2"),
        ("eval_data", ["ptb", "c4"], "ptb,c4"),
    ],
)
def test_contradiction(option: str, value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=f"--{option} {said} contradicts --protocol wanda-2048, which fixes it at "):
        recipe_from_flat({**HALF, "protocol": "wanda-2048", option: value})


def test_agreement_is_no_contradiction() -> None:
    same = {key: list(value) if isinstance(value, tuple) else value for key, value in PROTOCOLS["alps"].items()}
    assert recipe_from_flat({**HALF, "protocol": "alps", **same}) == recipe_from_flat({**HALF, "protocol": "alps"})


def test_recipe_that_only_claims_a_protocol() -> None:
    with pytest.raises(RecipeError, match="--eval_data wikitext2,ptb,c4 contradicts --protocol"):
        validated(
            Recipe(calibration=CalibrationOptions(protocol="wanda-2048"), pruning=recipe_from_flat(HALF).pruning)
        )
    with pytest.raises(RecipeError, match="--protocol 'mine' is unknown; choose from wanda-2048, wanda-4096, alps"):
        recipe_from_flat({**HALF, "protocol": "mine"})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry for every batch of windows whose loss is computed."""
    calls: list[int] = []
    original = module.window_losses

    def counted(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return original(logits, ids)

    monkeypatch.setattr(module, "window_losses", counted)
    return calls


def test_dense_model_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[int]) -> None:
    """While weights, windows and precision are the same; only where a cache is named; pruned models every time."""
    model, text = save_tiny(tmp_path / "model"), write_words(tmp_path / "words.txt", 100, 0)
    first = autoprune.evaluate(model, eval_data=text, seqlen=16)
    count = len(measured)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    assert autoprune.evaluate(model, eval_data=text, seqlen=16) == first
    assert len(measured) == 2 * count
    assert autoprune.evaluate(model, eval_data=text, seqlen=16) == first
    assert len(measured) == 2 * count
    autoprune.evaluate(model, eval_data=text, seqlen=8)
    autoprune.evaluate(model, eval_data=text, seqlen=16, dtype="bfloat16")
    seen = len(measured)
    assert seen > 3 * count
    change_weights(model, lambda held: held["model.norm.weight"].add_(0.5))
    assert autoprune.evaluate(model, eval_data=text, seqlen=16) != first
    assert len(measured) > seen
    for _ in range(2):
        seen = len(measured)
        autoprune.prune(model, prune_method="magnitude", sparsity_ratio=0.5, eval_data=text, seqlen=16)
        assert len(measured) > seen


def test_windows_are_those_of_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed tokenizer or text cuts anew; of a model in memory nothing is kept, for its tokenizer has no file to
    know it by.
    """
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    model, text = save_tiny(tmp_path / "model"), write_words(tmp_path / "words.txt", 100, 0)
    autoprune.evaluate(tiny_model(), tokenizer=tiny_tokenizer(), eval_data=text, seqlen=16)
    kept = (tmp_path / "cache").glob
    assert not list(kept("windows-*"))
    own = model / "own_words.txt"  # of a tokenizer that nobody knows
    own.write_text("a\n")
    for count, change in enumerate((None, None, model / "tokenizer_config.json", text, own)):
        if change:
            change.write_text(change.read_text() + "\n")
        autoprune.evaluate(model, eval_data=text, seqlen=16)
        assert len(list(kept("windows-*"))) == max(1, count)


def test_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    windows = Windows(torch.arange(6).view(2, 3), {"source": "x"})
    assert cached_windows({"a": 1}, lambda: windows).provenance == {"source": "x"}
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"half a file")
    again = cached_windows({"a": 1}, lambda: windows)
    assert torch.equal(again.ids, windows.ids)
    assert torch.equal(cached_windows({"a": 1}, lambda: pytest.fail("made twice")).ids, windows.ids)


def test_a_cache_that_can_not_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file/cache"))
    windows, told = Windows(torch.arange(6).view(2, 3), {"source": "x"}), list[Event]()
    assert cached_windows({"a": 1}, lambda: windows, told.append) is windows
    keep(tmp_path / "file/cache", "dense", {"a": 1}, {"b": 2}, told.append)
    assert [str(event).count("AUTOPRUNE_CACHE=") for event in told] == [1, 1]
    assert "so nothing is kept for later runs" in str(told[0])
