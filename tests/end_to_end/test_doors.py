"""What Python's doors are given by mistake: refused by name, with what to give instead, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

import autoprune
from autoprune import AutoPruneError, ModelError, RecipeError
from end_to_end.tiny import SEQLEN, Texts, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 3 + 8 * SEQLEN).view(8, SEQLEN) % 120
OPTIONS: dict[str, Any] = {"sparsity_ratio": 0.5, "calibration_data": IDS, "prune_method": "wanda"}
GRID: dict[str, Any] = {"models": ["demo"], "methods": ["wanda"], "targets": [0.5]}


def refused(says: str, door: str, *arguments: Any, kind: type[AutoPruneError] = RecipeError, **options: Any) -> None:
    with pytest.raises(kind, match=says) as caught:
        getattr(autoprune, door)(*arguments, **options)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("door", ["prune", "evaluate", "inspect", "speed", "compare", "compare2", "rotate", "shrink"])
def test_models_that_are_none(door: str, tmp_path: Path) -> None:
    def call(model: Any, says: str) -> None:
        if door == "compare2":
            refused(says, "compare", "demo", model)
        elif door == "compare":
            refused(says, door, model, "demo")
        elif door in ("rotate", "shrink"):
            refused(says, door, model, tmp_path / "out", **({"blocks": 1} if door == "shrink" else {}))
        else:
            refused(says, door, model)

    call(None, "the model is of type NoneType; give its hub id")
    call(5, "the model is of type int; give its hub id")
    call(autoprune.Recipe.of(model="demo", sparsity=0.5), r"of type Recipe; autoprune.run\(recipe\) does")


def test_what_holds_a_model() -> None:
    held = pipeline("text-generation", model=tiny_model(), tokenizer=tiny_tokenizer())  # type: ignore[call-overload]
    for door in ("prune", "evaluate", "inspect"):
        refused(r"TextGenerationPipeline; give the model that it holds, its .model, and its .tokenizer", door, held)
    refused("its .tokenizer", "evaluate", tiny_model(), tokenizer=held, eval_data=["w1"], kind=ModelError)
    refused(r"PreTrainedTokenizerFast\(tokenizer_object=", "evaluate", tiny_model(), eval_data=["w1"],
            tokenizer=tiny_tokenizer().backend_tokenizer, kind=ModelError)  # fmt: skip
    refused(r"PruneResult; give .* its .model, or its .directory", "evaluate",
            autoprune.prune(tiny_model(), **OPTIONS))  # fmt: skip


@pytest.mark.parametrize("place", [None, 3, b"out", "", " ", "a\0b", "n" * 300])
def test_places_that_are_none(place: Any) -> None:
    refused("^out is ", "rotate", "demo", place)
    refused("^out is ", "shrink", "demo", place, blocks=1)
    refused("^directory is ", "benchmark", GRID, place)
    refused("^grid is ", "benchmark", place)
    with pytest.raises(RecipeError, match=r"^a recipe's path is "):
        autoprune.Recipe.read(place)
    if place is not None:
        refused("^save is ", "compare", "demo", "demo", save=place)
        refused("^save is ", "speed", "demo", save=place)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"emit": "print"}, r"emit is of type str \('print'\); give a function"),
        ({"effort": ["high"], "prune_method": ""}, r"--effort \"\['high'\]\" is unknown .*; choose from low"),
        ({"dtype": torch.bfloat16}, "--dtype torch.bfloat16 is of the wrong kind; .* such as 'auto', 'float32'"),
        ({"calibration_data": None}, "--calibration_data None .*; leave it out for the usual one"),
        ({"eval_data": None, "compare": True}, "eval_data is None, .* and --compare needs one"),
        ({"eval_data": None, "save_ppl": "here"}, "eval_data is None, .* and --save_ppl needs one"),
        ({"revision": "v1"}, "--revision v1: .* this one is in memory"),
    ],
)
def test_options_that_mean_nothing(changes: dict[str, Any], says: str) -> None:
    refused(says, "prune", tiny_model(), **{**OPTIONS, **changes})


def test_a_model_in_memory_is_used_as_it_is() -> None:
    refused("--dtype bfloat16: LlamaForCausalLM in memory is float32", "prune", tiny_model(), dtype="bfloat16",
            kind=ModelError, **OPTIONS)  # fmt: skip
    refused("--device 'nowhere' can't be used here", "prune", tiny_model(), device="nowhere", **OPTIONS)
    assert autoprune.prune(tiny_model(), dtype="float32", device="cpu", **OPTIONS).summary is not None


def test_no_text_is_measured_where_there_is_none(tiny: Path, texts: Texts) -> None:
    """``eval_data=None`` is no text; where nothing else is to be measured, that is said."""
    assert autoprune.prune(tiny_model(), eval_data=None, **OPTIONS).perplexity == {}
    refused("nothing is to be measured: eval_data is None", "evaluate", tiny, eval_data=None)
    refused("nothing is to be compared: eval_data is None", "compare", tiny, tiny, eval_data=None)


def test_run_takes_a_model_by_its_name_too(tiny: Path, texts: Texts) -> None:
    recipe = autoprune.Recipe.of(model="gone", sparsity=0.5, steps="wanda", seqlen=SEQLEN, nsamples=8)
    assert autoprune.run(recipe, model=tiny, calibration_data=IDS).recipe.model.model == str(tiny)
    refused("the model is of type int", "run", recipe, model=3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": [{"steps": 3}]}, "steps 3 of a method is no list of words"),
        ({"methods": [{"steps": "wanda", "only": 3}]}, "only 3 of a method is no list of targets"),
        ({"jobs": None}, "--jobs None is no number of processes"),
        ({"jobs": 0}, "--jobs 0 is no number of processes"),
    ],
)
def test_grids(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    jobs = {"jobs": changes.pop("jobs")} if "jobs" in changes else {}
    refused(says, "benchmark", {**GRID, **changes}, tmp_path, **jobs)


def test_the_revision_is_the_models_and_its_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer by its name on the hub is of the model's revision if it is the model's, or if there is no model."""
    asked = []

    def from_pretrained(name: str, revision: str, **_: Any) -> Any:
        asked.append((name, revision))
        return tiny_tokenizer()

    monkeypatch.setattr("autoprune.run.open.AutoTokenizer.from_pretrained", from_pretrained)
    options: dict[str, Any] = {"eval_data": [" ".join(["w1"] * 40)], "seqlen": SEQLEN, "revision": "v1"}
    autoprune.evaluate(tiny_model(), tokenizer="org/words", **options)
    with pytest.raises(ModelError):  # there is no such model; its tokenizer is looked for first
        autoprune.evaluate("org/model", tokenizer="org/model", **options)
    with pytest.raises(ModelError):
        autoprune.evaluate("org/model", tokenizer="org/other", **options)
    assert asked == [("org/words", "v1"), ("org/model", "v1"), ("org/other", "main")]
