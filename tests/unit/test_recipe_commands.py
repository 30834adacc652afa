"""In Python, an option that means nothing to a function is refused by name, before anything is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import autoprune
from autoprune.errors import RecipeError
from autoprune.recipe import keywords
from autoprune.recipe.commands import COMPARE, EVALUATE, INSPECT, ROTATE, SHRINK, SPEED, Command
from autoprune.recipe.recipe import groups

OPTIONS = {field.name for group in groups() for field in dataclasses.fields(group.type)} - {"model"}
# By command: a call that would fail by its model, and the options that type checkers know.
CALLS: dict[Command, tuple[Callable[..., Any], Any]] = {
    EVALUATE: (lambda **options: autoprune.evaluate("nowhere", **options), keywords.EvaluateOptions),
    INSPECT: (lambda **options: autoprune.inspect("nowhere", **options), keywords.InspectOptions),
    COMPARE: (lambda **options: autoprune.compare("nowhere", "nowhere", **options), keywords.CompareOptions),
    ROTATE: (lambda **options: autoprune.rotate("nowhere", "out", **options), keywords.RotateOptions),
    SHRINK: (lambda **options: autoprune.shrink("nowhere", "out", **options), keywords.ShrinkChoices),
    SPEED: (lambda **options: autoprune.speed("nowhere", **options), keywords.SpeedChoices),
}


@pytest.mark.parametrize("command", CALLS, ids=lambda command: command.name)
def test_every_option_is_known_or_refused(command: Command) -> None:
    call, typed = CALLS[command]
    known = set(typed.__annotations__)
    odd = sorted(OPTIONS - known)
    assert "sparsity_ratio" in odd and "dtype" in known
    for name in odd:
        with pytest.raises(RecipeError, match=f"^option '{name}' means nothing to {command.name}; leave it out"):
            call(**{name: None})
    command.check(dict.fromkeys(known))


def test_a_misspelt_option_is_told_from_one_of_another_command() -> None:
    with pytest.raises(RecipeError, match=r"option 'eval_date' means nothing to compare; did you mean 'eval_data'\?"):
        autoprune.compare("nowhere", "nowhere", **{"eval_date": "demo"})  # type: ignore[misc]
    with pytest.raises(RecipeError, match="'calibration_data' means nothing to compare; leave it out"):
        autoprune.compare("nowhere", "nowhere", calibration_data="demo")  # type: ignore[call-arg]
