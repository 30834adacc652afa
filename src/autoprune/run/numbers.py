"""How many of something go, from a number or a share."""

from __future__ import annotations

from autoprune.errors import RecipeError


def count_of(flag: str, asked: float | None, there: int, *, least: int, why: str = "") -> int:
    """How many of ``there`` go. Raises: RecipeError if that leaves fewer than ``least``, or is no number."""
    if not asked:
        return 0
    if asked >= 1 and asked % 1:
        raise RecipeError(f"--{flag} {asked:g} is neither a whole number nor a share below 1")
    count = int(asked) if asked >= 1 else max(1, round(asked * there))
    if there - count < least:
        raise RecipeError(
            f"--{flag} {asked:g} is {count} of {there}, which leaves {max(0, there - count)}; at least {least} must"
            f" stay{why}: give {there - least} or less"
        )
    return count
