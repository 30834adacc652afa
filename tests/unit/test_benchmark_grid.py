"""A grid file becomes cells, and says what is wrong with it before anything runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from autoprune.bench.grid import make_grid, read_grid, stamps
from autoprune.errors import RecipeError

SMALL: dict[str, Any] = {"models": ["demo"], "methods": ["wanda"], "targets": [0.5]}


def test_shipped_grid(repository_root: Path) -> None:
    """Every first pass at both targets, with and without LLM-Barber, three seeds; the dense model once; nothing
    twice.
    """
    grid = read_grid(repository_root / "benchmarks/demo.toml")
    recipes = [cell.recipe for cell in grid.cells]
    assert [recipe.target for recipe in recipes].count(None) == 1
    pruned = {(r.steps[0], str(r.target), r.steps[1:] == ("barber",), r.calibration.seed) for r in recipes if r.target}
    assert pruned == set(
        itertools.product(("magnitude", "wanda", "sparsegpt"), ("unstructured 0.5", "2:4"), (False, True), (0, 1, 2))
    )
    assert len({str(recipe) for recipe in recipes}) == len(recipes)


def test_axes_options_and_words() -> None:
    methods = [
        "magnitude",
        "wanda+barber",
        {"prune_method": "sparsegpt", "only": ["2:4"], "damping": 0.1, "name": "heavy"},
    ]
    grid = make_grid(
        {
            **SMALL,
            "methods": methods,
            "targets": [0.5, "2:4"],
            "seeds": [0, 7],
            "options": {"nsamples": 3},
            "title": "mine",
        }
    )
    assert grid.title == "mine"
    assert [cell.name for cell in grid.cells][:3] == [
        "demo dense",
        "demo magnitude 0.5 seed 0",
        "demo magnitude 0.5 seed 7",
    ]
    heavy = [cell for cell in grid.cells if "heavy" in cell.name]
    assert [
        (c.recipe.options_of("sparsegpt").damping, str(c.recipe.target), c.recipe.calibration.seed) for c in heavy
    ] == [
        (0.1, "2:4", 0),
        (0.1, "2:4", 7),
    ]
    assert all(cell.recipe.calibration.nsamples == 3 for cell in grid.cells)
    assert sum("barber" in cell.recipe.steps for cell in grid.cells) == 4


def test_models_in_directories_of_one_name_are_told_apart() -> None:
    cells = make_grid({**SMALL, "models": ["a/llama", "b/llama/", "org/other"]}).cells
    assert [cell.name for cell in cells if "dense" in cell.name] == ["a/llama dense", "b/llama/ dense", "other dense"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"models": []}, "models is missing or empty"),
        ({"methods": None}, "methods is missing or empty"),
        ({"targets": "2:4"}, "targets must be a list"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"options": []}, "options must be a table"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"methods": ["wanda+magic"]}, "--steps 'magic' is unknown"),
        ({"methods": [{"treshold": 1}]}, "cell demo wanda 0.5 seed 0: unknown option 'treshold'"),
        ({"targets": [1.5]}, "--sparsity_ratio 1.5 is outside"),
        ({"targets": [0]}, "target 0 prunes nothing"),
        ({"targets": ["4:2"]}, "--sparsity_type 4:2"),
        ({"methods": ["wanda", {"damping": 0.2}]}, "two cells are called 'demo wanda 0.5 seed 0'; give"),
        ({"seeds": ["first"]}, "--seed 'first'"),
        ({"options": {"protocol": "alps", "seqlen": 512}}, "--seqlen 512 contradicts --protocol alps"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=f"^grid: .*{expected}"):
        make_grid({**SMALL, **change})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "there is no such grid file"),
        ("models = [", "is no readable TOML"),
        ("models = []", "models is missing"),
    ],
)
def test_file_that_is_no_grid(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "grid.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError, match=expected) as caught:
        read_grid(file)
    assert str(file) in str(caught.value)


def test_key_changes_with_options_and_with_the_files_that_are_read(tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    text.write_text("words")

    def key(**options: Any) -> str:
        return (
            make_grid({**SMALL, "models": [str(model)], "options": {"calibration_data": str(text), **options}})
            .cells[1]
            .key
        )

    first = key()
    assert key() == first
    assert key(nsamples=5) != first
    (model / "model.safetensors").write_bytes(b"other weights")
    second = key()
    assert second != first
    text.write_text("other words")
    assert key() not in (first, second)


def test_stamps_of_words() -> None:
    assert any(name == "model.safetensors" for name, _, _ in stamps("demo"))
    assert stamps("huggyllama/llama-7b") == []
