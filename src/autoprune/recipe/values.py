"""The target in one word, as a user may give it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoprune.errors import RecipeError
from autoprune.recipe.checks import short


def with_sparsity(values: dict[str, Any]) -> dict[str, Any]:
    """``sparsity`` as type and ratio. Raises: RecipeError if it says the same as another option, or nothing."""
    if (ratios := values.pop("ratios", None)) is not None:
        if not isinstance(ratios, Mapping):
            raise RecipeError(
                f"ratios {short(ratios)} is no table; give {{pattern: ratio}}, such as {{'*.mlp.*': 0.6}}"
            )
        if values.get("ratio"):
            raise RecipeError("ratios and --ratio say the same; leave out one of the two")
        values = {**values, "ratio": tuple(f"{pattern}={ratio}" for pattern, ratio in ratios.items())}
    word = values.pop("sparsity", None)
    if word is None:
        return values
    for name in ("sparsity_ratio", "sparsity_type"):
        if values.get(name) is not None:
            raise RecipeError(f"--sparsity and --{name} both name the target; leave out one of the two")
    if ":" in str(word):
        return {**values, "sparsity_type": str(word)}
    try:
        return {**values, "sparsity_ratio": float(word)}
    except (TypeError, ValueError) as error:
        raise RecipeError(f"--sparsity {short(word)} is neither a ratio such as 0.5 nor N:M such as 2:4") from error
