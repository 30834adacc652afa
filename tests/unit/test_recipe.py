"""The recipe: one place for every choice, checked against the others."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from autoprune.core.sparsity import SemiStructured, Unstructured
from autoprune.errors import RecipeError
from autoprune.recipe.recipe import Recipe, groups, recipe_from_flat
from autoprune.results.codec import dump_json

HALF: dict[str, Any] = {"sparsity_ratio": 0.5}
FIELDS = [(group, field) for group in groups() for field in dataclasses.fields(group.type)]


def refused(says: str, **options: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_flat({**HALF, **options})
    assert says in str(caught.value)


def test_defaults_are_the_papers() -> None:
    recipe = recipe_from_flat(HALF)
    assert (recipe.calibration.nsamples, recipe.calibration.seed, recipe.calibration.calibration_data) == (
        128,
        0,
        "c4",
    )
    assert recipe.evaluation.eval_data == ("wikitext2", "ptb", "c4")
    barber = recipe.options_of("barber")
    assert (barber.threshold, barber.prune_metric, barber.retain_reconstruction) == (
        0.01,
        "WD",
        False,
    )
    assert (recipe.options_of("sparsegpt").column_block, recipe.options_of("sparsegpt").damping) == (128, 0.01)


def test_tasks_are_those_that_are_named_or_the_usual_ones_where_they_are_saved() -> None:
    """What is about tasks has no meaning without any."""
    assert recipe_from_flat(HALF).zeroshot.tasks == ()
    assert recipe_from_flat({**HALF, "save_zeroshot": "out"}).zeroshot.tasks[:2] == ("boolq", "rte")
    assert recipe_from_flat({**HALF, "save_zeroshot": "out", "tasks": "piqa"}).zeroshot.tasks == ("piqa",)
    for name, value in {"limit": 3, "num_fewshot": 0, "tasks_path": "here"}.items():
        refused(f"--{name} is about zero-shot tasks, but none are measured", **{name: value})
        assert getattr(recipe_from_flat({**HALF, name: value, "tasks": ["piqa"]}).zeroshot, name) == value
    for empty in ("", "piqa,", ["piqa", ""]):
        refused("--tasks is empty or has an empty part", tasks=empty)
    refused("--tasks is empty or has an empty part", tasks=[], save_zeroshot="out")


def test_no_two_options_share_a_name() -> None:
    names = [field.name for _, field in FIELDS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("group", "field"), FIELDS, ids=lambda value: getattr(value, "name", ""))
def test_every_option_is_explained_and_its_default_is_allowed(group: Any, field: Any) -> None:
    assert len(field.metadata["help"]) > 10
    hint = typing.get_type_hints(group.type)[field.name]
    recipe = recipe_from_flat({**HALF, field.name: field.default} if field.name != "sparsity_ratio" else HALF)
    options = recipe.options_of(group.name) if group.step else getattr(recipe, group.name)
    assert field.name == "sparsity_ratio" or getattr(options, field.name) == field.default
    assert hint is not Any


def test_recipes_are_frozen_and_plain() -> None:
    recipe = recipe_from_flat({**HALF, "model": Path("a/b"), "eval_data": ["x.txt"], "save_model": Path("out")})
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.run = None  # type: ignore[assignment, misc]
    plain = recipe.to_dict()
    assert (plain["model"]["model"], plain["output"]["save_model"]) == ("a/b", "out")
    assert json.loads(dump_json(plain))["evaluation"]["eval_data"] == ["x.txt"]
    assert recipe.with_model("other").model.model == "other"
    assert recipe.with_model("other").output == recipe.output


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({"sparsity_ratio": 0.5}, Unstructured(0.5)),
        ({"sparsity_ratio": 0}, None),
        ({"sparsity_ratio": 0.0, "sparsity_type": "2:4"}, None),
        ({"sparsity_type": "2:4"}, SemiStructured(2, 4)),
        ({"sparsity_type": "4:8", "sparsity_ratio": 0.5}, SemiStructured(4, 8)),
        ({"pruned_model": "x", "prune_barber": True}, None),
        ({"pruned_model": "x", "prune_barber": True, "sparsity_ratio": 0.7}, None),
        ({"pruned_model": "x", "prune_barber": True, "sparsity_type": "2:4"}, SemiStructured(2, 4)),
    ],
    ids=str,
)
def test_target(options: dict[str, Any], target: object) -> None:
    assert recipe_from_flat(options).target == target


def test_words_lists_and_paths() -> None:
    def evaluation(value: Any) -> tuple[str, ...]:
        return recipe_from_flat({**HALF, "eval_data": value}).evaluation.eval_data

    assert (
        evaluation("a.txt, b.txt")
        == evaluation(["a.txt", "b.txt"])
        == evaluation((Path("a.txt"), Path("b.txt")))
        == ("a.txt", "b.txt")
    )
    assert recipe_from_flat({**HALF, "ignore": "*.q,k"}).pruning.ignore == ("*.q,k",), "a pattern may hold a comma"
    assert recipe_from_flat({**HALF, "ignore": ["a", "b"]}).pruning.ignore == ("a", "b")
    assert recipe_from_flat({**HALF, "threshold": 0}).options_of("barber").threshold == 0


def test_impossible_choices() -> None:
    refused("unknown option 'treshold'", treshold=0.1)
    refused(
        "--prune_granularity block can't keep 2:4: only output1",
        sparsity_type="2:4",
        prune_barber=True,
        prune_granularity="block",
    )
    refused("--pruned_model only has a meaning together with a step that goes on with it", pruned_model="x")
    refused("--delete removes what --save_model wrote", delete=True)
    refused("--eval_data is empty", eval_data=())
    refused("--save_model is empty", save_model="")
    refused("--sparsity_ratio 1.5 is outside", sparsity_ratio=1.5)
    refused("--sparsity_ratio 1.5 is outside", sparsity_ratio=1.5, pruned_model="x", prune_barber=True)
    refused("--sparsity_ratio is needed", sparsity_ratio=None)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("nsamples", (0, -1, "8", 8.0, None, True)),
        ("seqlen", (1, 0, "long", 2.0)),
        ("seed", ("zero", None, 1.5)),
        ("threshold", (-0.1, 1.1, float("nan"), "low", None, True)),
        ("damping", (0, -1, float("inf"), float("nan"), "x")),
        ("prune_metric", ("wd", "", None)),
        ("prune_granularity", ("row", None)),
        ("dtype", ("fp16", None)),
        ("quiet", (1, "yes", None)),
        ("eval_data", (3, [3], None, {"a": 1})),
        ("sparsity_type", (None, 2, "2:4:8")),
        ("model", (None, 3)),
    ],
)
def test_values_of_the_wrong_kind_or_size(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        refused(f"--{name} ", **{name: value})


def test_ratios_by_layer() -> None:
    recipe = recipe_from_flat({**HALF, "ratios": {"*.mlp.*": 0.6, "*.0.*": 0.25}})
    assert recipe.ratios == {"*.mlp.*": 0.6, "*.0.*": 0.25}
    assert recipe_from_flat({**HALF, "ratio": ["*.mlp.*=0.6"]}).ratios == {"*.mlp.*": 0.6}
    for entry, words in (
        ("0.6", "name a pattern"),
        ("a=b", "is not PATTERN=R"),
        ("a=1.5", "--ratio 'a=1.5': name a pattern and a ratio between 0 and 1"),
        ("a=0", "between 0 and 1"),
        ("a=nan", "between 0 and 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            recipe_from_flat({**HALF, "ratio": [entry]})
    with pytest.raises(RecipeError, match="leaves no room"):
        recipe_from_flat({"sparsity_type": "2:4", "ratio": ["a=0.5"]})
    with pytest.raises(RecipeError, match="is no table"):
        recipe_from_flat({**HALF, "ratios": [("*.mlp.*", 0.6)]})
    with pytest.raises(RecipeError, match="say the same"):
        recipe_from_flat({**HALF, "ratios": {"*.mlp.*": 0.6}, "ratio": ["a=0.5"]})


def test_what_goes_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text('{"model": "a/b", "revision": "v1", "sparsity_ratio": 0.5, "nsamples": 8, "seqlen": 64}')
    assert Recipe.read(file, model="a/b").model.revision == "v1"
    assert Recipe.read(file, model="c/d").model.revision is None
    assert Recipe.read(file, protocol="wanda-2048").calibration.seqlen == 2048
    with pytest.raises(RecipeError, match="is a directory; give a file in it"):
        Recipe.read(tmp_path)


def test_texts_themselves_are_no_words_of_a_recipe() -> None:
    for name in ("calibration_data", "eval_data"):
        with pytest.raises(RecipeError, match=rf"autoprune\.run\(recipe, {name}=…\)"):
            recipe_from_flat({**HALF, name: [3, 4]})


@pytest.mark.parametrize(
    ("word", "target"), [("0.5", Unstructured(0.5)), ("2:4", SemiStructured(2, 4)), (0.7, Unstructured(0.7))]
)
def test_sparsity_in_a_word(word: Any, target: Any) -> None:
    recipe = recipe_from_flat({"sparsity": word})
    assert recipe.target == target and recipe.chosen.effort == "medium" and len(recipe.steps) > 1
    assert recipe_from_flat({"sparsity": word, "prune_method": "wanda"}).steps == ("wanda",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": "half"}, "neither a ratio"),
        ({"sparsity": "0.5", "sparsity_ratio": 0.5}, "both name the target"),
        ({"sparsity": "0.5", "effort": "high", "steps": "wanda"}, "leave out one of the two"),
        ({"sparsity": "0.5", "effort": "utmost"}, "is unknown; choose from low, medium, high"),
    ],
)
def test_sparsity_and_effort_that_say_too_much_or_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_from_flat(options)
