"""The table of methods: names, hyper-parameters from the recipe, plugins, order of passes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from typing import ClassVar

import pytest

from autoprune import steps as methods
from autoprune.core.problem import Scope
from autoprune.errors import RecipeError
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.steps import FIRST_PASSES, first_pass, passes
from autoprune.steps.barber import Barber
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda


@dataclass(frozen=True)
class Newcomer:
    """A method as another package would bring it."""

    statistic: ClassVar[None] = None
    scope: ClassVar[Scope] = Scope.INPUT_GROUP

    def solve(self, problems: object) -> list[object]:
        """Never called here."""
        return []


def test_recipe_and_table_list_the_same_methods() -> None:
    assert tuple(FIRST_PASSES) == ("magnitude", "wanda", "sparsegpt")


@pytest.mark.parametrize(
    ("name", "method"), [("magnitude", Magnitude()), ("wanda", Wanda()), ("sparsegpt", SparseGPT())]
)
def test_first_pass_by_name(name: str, method: object) -> None:
    assert first_pass(name, Recipe()) == method


def test_hyper_parameters_come_from_the_recipe() -> None:
    recipe = recipe_from_flat({"prune_method": "sparsegpt", "sparsity_ratio": 0.5, "column_block": 64, "damping": 0.1})
    assert first_pass("sparsegpt", recipe) == SparseGPT(64, 0.1)


def test_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(RecipeError, match="--prune_method 'obd' is unknown; choose from magnitude, wanda, sparsegpt"):
        first_pass("obd", Recipe())


def test_another_package_can_bring_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("newcomer", f"{__name__}:Newcomer", methods.ENTRY_POINT_GROUP)
    monkeypatch.setattr(methods, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    assert type(first_pass("newcomer", Recipe())).__name__ == "Newcomer"
    with pytest.raises(RecipeError, match="choose from magnitude, wanda, sparsegpt, newcomer"):
        first_pass("obd", Recipe())


def test_passes_in_order() -> None:
    ratio = {"sparsity_ratio": 0.5}
    assert passes(recipe_from_flat(ratio)) == (Wanda(),)
    then_barber = {**ratio, "prune_barber": True, "prune_granularity": "block", "threshold": 0.1}
    assert passes(recipe_from_flat(then_barber)) == (Wanda(), Barber("block", 0.1))
    assert passes(recipe_from_flat({**then_barber, "pruned_model": "elsewhere"})) == (Barber("block", 0.1),)
