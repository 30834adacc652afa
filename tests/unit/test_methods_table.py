"""The table of steps: names, options from the recipe, plugins, the classic flags, order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar

import pytest

import autoprune
from autoprune.cli.flags import Parser, add_flags, given
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.selection import keep_for
from autoprune.errors import RecipeError
from autoprune.recipe.recipe import groups, recipe_from_flat, recipe_from_record
from autoprune.run.inspect import inspect
from autoprune.steps import table
from autoprune.steps.barber import Barber
from autoprune.steps.base import LayerStep, Step
from autoprune.steps.options import option
from autoprune.steps.price import Price, Shape
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.manifest import Manifest


@dataclass(frozen=True)
class Newcomer(LayerStep):
    """A step as another package would bring it: the largest weights go."""

    newcomer_power: float = option(1.0, "newcomer: power of the weight", positive=True)
    name: ClassVar[str] = "newcomer"
    title: ClassVar[str] = "Newcomer"

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """Against all sense."""
        return [
            LayerSolution(p.name, keep_for(-(p.weight.abs() ** self.newcomer_power), p.target, per_row=True))
            for p in problems
        ]

    def price(self, shape: Shape) -> Price:
        """Next to nothing."""
        return Price(work=12345 * 2**20)


@pytest.fixture
def newcomer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with that step."""
    entry = EntryPoint("newcomer", f"{__name__}:Newcomer", table.ENTRY_POINT_GROUP)
    monkeypatch.setattr(table, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    table.table.cache_clear()
    yield
    monkeypatch.undo()
    table.table.cache_clear()


def steps(**options: Any) -> tuple[Step, ...]:
    recipe = recipe_from_flat({"sparsity_ratio": 0.5, **options})
    return table.make_steps(recipe.steps, recipe.step_options)


def test_options_come_from_the_recipe() -> None:
    assert steps(prune_method="sparsegpt", column_block=64, damping=0.1) == (SparseGPT(64, 0.1),)


def test_unknown_steps_are_refused_with_the_choices() -> None:
    with pytest.raises(RecipeError, match="--prune_method 'obd' is unknown; choose from magnitude, wanda, sparsegpt"):
        steps(prune_method="obd")
    with pytest.raises(RecipeError, match="--steps 'obd' is unknown"):
        steps(steps="wanda,obd")


def test_classic_flags_are_a_list_of_steps() -> None:
    assert steps() == (Wanda(),)
    then_barber = {"prune_barber": True, "prune_granularity": "block", "threshold": 0.1}
    assert (
        steps(**then_barber)
        == (Wanda(), Barber("block", 0.1))
        == steps(**then_barber | {"prune_barber": False, "steps": "wanda,barber"})
    )
    assert steps(**then_barber, pruned_model="elsewhere") == (Barber("block", 0.1),)
    with pytest.raises(RecipeError, match="--steps names all steps"):
        steps(steps="wanda", prune_barber=True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("refit", "goes on with a pattern"),
        ("barber,wanda", "goes on with a pattern"),
        ("mixed", "none of these steps prunes"),
        ("wanda,alps", "alps chooses a pattern by itself, and wanda before it gives one already; leave out one"),
        ("mixed,magnitude,refit,auto", "auto chooses a pattern by itself, and magnitude before it gives one"),
    ],
)
def test_a_refinement_needs_a_pattern_and_one_step_chooses_it(names: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        steps(steps=names)


def test_records_can_be_read_again() -> None:
    recipe = recipe_from_flat({"steps": "wanda,barber", "sparsity_type": "2:4", "threshold": 0.3})
    again = recipe_from_record(recipe.to_dict())
    assert again.to_dict() == recipe.to_dict() and again.options_of("barber").threshold == 0.3


def test_two_steps_with_an_option_of_one_name_are_told(newcomer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = dict(table.table()) | {"twin": table.table()["newcomer"]}
    monkeypatch.setattr(table, "table", lambda: twin)
    with pytest.raises(RecipeError, match="both have an option 'newcomer_power'"):
        groups()


def test_another_package_can_bring_a_step(newcomer: None, tmp_path: Path) -> None:
    """Its flag, its option in the record, its price, its name in the table: no line is changed elsewhere."""
    parser = Parser(allow_abbrev=False)
    add_flags(parser)
    words = ["--model", "demo", "--sparsity_ratio", "0.5", "--steps", "newcomer", "--newcomer_power", "2"]
    flat = given(parser.parse_args(words))
    assert flat["newcomer_power"] == 2.0
    assert "newcomer: power of the weight" in parser.format_help()
    result = autoprune.prune(**flat, save_model=str(tmp_path / "out"))
    assert result.row.method == "newcomer (newcomer power 2)"
    recorded = Manifest.read(tmp_path / "out").raw["recipe"]["steps"]
    assert recorded == [{"name": "newcomer", "newcomer_power": 2.0}]
    priced = {estimate.method: estimate.bytes for estimate in inspect("demo", steps="newcomer").costs}
    assert priced["newcomer"] > 12345 * 2**20 > priced["wanda"]
    with pytest.raises(RecipeError, match=r"--newcomer_power -1\.0 must be a positive number"):
        recipe_from_flat({"newcomer_power": -1.0, "sparsity_ratio": 0.5})
