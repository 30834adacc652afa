"""`autoprune compare` on models that do not belong together, and on numbers that are none."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import autoprune
from autoprune.data.windows import Windows
from autoprune.errors import AutoPruneError, DataError, ModelError, NumericsError, OutputError, RecipeError
from autoprune.evaluation.compare import compare_predictions
from autoprune.events import silent
from autoprune.model.stream import Place
from autoprune.report.save import claimed
from autoprune.storage.store import MemoryStore
from end_to_end.tiny import SEQLEN, Texts, change_weights, save_tiny, tiny_model

Options = dict[str, Any]


@pytest.fixture(scope="module")
def options(texts: Texts) -> Options:
    return {"eval_data": [texts.heldout], "seqlen": SEQLEN}


def other_head(weights: dict[str, Tensor]) -> None:
    weights["model.norm.weight"][0] += 1


def not_a_number(weights: dict[str, Tensor]) -> None:
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan


def trained_on(weights: dict[str, Tensor]) -> None:
    """As an adapter that was merged leaves it: norms and embeddings are the old ones."""
    for name, weight in weights.items():
        if "proj" in name:
            weight += 0.01


BAD: dict[str, tuple[Callable[[Path], object], type[AutoPruneError], str]] = {
    "another vocabulary": (
        lambda path: save_tiny(path, tiny_model(vocab_size=130)),
        ModelError,
        r"other has a vocabulary of 130 tokens and .* one of 128.*give models of one vocabulary",
    ),
    "another tokenizer": (
        lambda path: (path / "tokenizer.json").write_text(
            (path / "tokenizer.json").read_text().replace('"w7"', '"x7"')
        ),
        ModelError,
        r"different tokenizers \(2 tokens, such as 'w7'\)",
    ),
    "another context": (
        lambda path: save_tiny(path, tiny_model(max_position_embeddings=32)),
        ModelError,
        r"context of 32 tokens and .* for 64.*--unrelated",
    ),
    "another shape": (
        lambda path: save_tiny(path, tiny_model(intermediate_size=48)),
        ModelError,
        r"is no pruned copy of .*mlp\.down_proj\.weight is \(32, 48\) there and \(32, 64\).*--unrelated",
    ),
    "another norm": (
        lambda path: change_weights(path, other_head),
        ModelError,
        r"is no pruned copy of .*: model\.norm\.weight, which pruning leaves alone, differs; --unrelated",
    ),
    "another training": (
        lambda path: change_weights(path, trained_on),
        ModelError,
        r"is no pruned copy of .*q_proj\.weight and all other layers differ, and none of them has zeros .*--unrelated",
    ),
    "NaN": (lambda path: change_weights(path, not_a_number), ModelError, r"up_proj\.weight holds NaN"),
}


@pytest.mark.parametrize("change", BAD)
def test_bad_models(change: str, tiny: Path, options: Options, tmp_path: Path) -> None:
    make, error, words = BAD[change]
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    make(other)
    with pytest.raises(error, match=words):
        autoprune.compare(tiny, other, save=tmp_path / "results", **options)
    assert not (tmp_path / "results").exists()
    if "--unrelated" in words:
        assert autoprune.compare(tiny, other, unrelated=True, **options).models[0].shifts["heldout.txt"].kld.mean >= 0


def test_bad_choices(tiny: Path, options: Options, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least one other model"):
        autoprune.compare(tiny, [], **options)
    with pytest.raises(RecipeError, match=r"--seqlen 1 is too small"):
        autoprune.compare(tiny, tiny, **{**options, "seqlen": 1})
    with pytest.raises(RecipeError, match=r"--memory .* is not enough.*comparing 2 models needs about"):
        autoprune.compare(tiny, tiny, **options, memory="100MB")
    with pytest.raises(OutputError, match=r"--save .* is a file"):
        (tmp_path / "file").write_text("")
        autoprune.compare(tiny, tiny, save=tmp_path / "file", **options)


def test_the_wrong_way_round(tiny: Path, options: Options, tmp_path: Path) -> None:
    """A "dense" model that was made from the other one, as its record says."""
    pruned = tmp_path / "pruned"
    autoprune.prune(tiny, steps="magnitude", sparsity=0.5, save_model=str(pruned), seqlen=SEQLEN)
    with pytest.raises(ModelError, match=r"pruned was made from .*name the dense one first, or .*--unrelated"):
        autoprune.compare(pruned, tiny, **options)
    assert autoprune.compare(pruned, tiny, unrelated=True, **options).models[0].shifts["heldout.txt"].kld.mean > 0


def test_two_of_one_origin(tiny: Path, options: Options, tmp_path: Path) -> None:
    """Neither is the dense model."""
    for name, sparsity in (("half", 0.5), ("more", 0.75)):
        autoprune.prune(tiny, steps="magnitude", sparsity=sparsity, save_model=str(tmp_path / name), seqlen=SEQLEN)
    with pytest.raises(ModelError, match=r"half and .*more were both made from one model.*name that first"):
        autoprune.compare(tmp_path / "half", tmp_path / "more", **options)


def test_what_is_only_told(tiny: Path, options: Options, tmp_path: Path) -> None:
    """A record that names another origin, though nothing speaks against this one; a tokenizer that can't be read."""
    autoprune.prune(tiny, steps="magnitude", sparsity=0.5, save_model=str(tmp_path / "half"), seqlen=SEQLEN)
    record = tmp_path / "half" / "autoprune.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "model": {**told["model"], "fingerprint": "0" * 64}}))
    (tmp_path / "half" / "tokenizer.json").write_text("{")
    warnings = autoprune.compare(tiny, tmp_path / "half", **options).warnings
    assert any("autoprune.json names another model" in text for text in warnings)
    assert any("half: no tokenizer can be read there" in text for text in warnings)


def test_resume_replaces_no_other_comparison(tiny: Path, options: Options, tmp_path: Path) -> None:
    autoprune.compare(tiny, tiny, save=tmp_path, **options)
    before = (tmp_path / "comparison.json").read_bytes()
    with pytest.raises(OutputError, match=r"comparison\.json there is of another comparison"):
        autoprune.compare(tiny, [tiny, tiny], save=tmp_path, resume=True, **options)
    assert (tmp_path / "comparison.json").read_bytes() == before


def test_two_runs_do_not_save_one_comparison(tiny: Path, options: Options, tmp_path: Path) -> None:
    """The second is refused before any work while the first is at it; so is a second stop-watch."""
    with claimed("save", tmp_path, "comparison"), claimed("save", tmp_path, "speed"):
        for door, models in ((autoprune.compare, (tiny, tiny)), (autoprune.speed, (tiny,))):
            call: Any = door
            with pytest.raises(OutputError, match=r"--save .*: another autoprune run is making (comparison|speed)"):
                call(*models, save=tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_numbers_are_found_by_window() -> None:
    """The third window's predictions are no numbers; windows of one token have none."""
    ids = torch.randint(3, 128, (5, SEQLEN), generator=torch.Generator().manual_seed(0))
    broken, calls = tiny_model(), []

    def spoil(_module: Any, _given: Any, output: Tensor) -> Tensor:
        calls.append(1)
        return output.fill_(math.nan) if len(calls) == 3 else output

    broken.lm_head.register_forward_hook(spoil)
    dense = MemoryStore(tiny_model())
    how: Options = {"batch": 1, "place": Place(), "emit": silent}
    with pytest.raises(
        NumericsError, match=r"window 3 of 5 of text: the predictions of broken are not finite.*--dtype"
    ):
        compare_predictions(dense, {"broken": MemoryStore(broken)}, Windows(ids, {}), "text", **how)
    with pytest.raises(DataError, match="windows of 1 token"):
        compare_predictions(dense, {"itself": dense}, Windows(ids[:, :1], {}), "text", **how)
    two = compare_predictions(dense, {"itself": dense}, Windows(ids[:, :2], {}), "text", **how)
    assert two["itself"].tokens == 5
