"""What pages and pictures need besides the program itself, looked for before long work."""

from __future__ import annotations

from importlib.util import find_spec

from autoprune.errors import RecipeError

PACKAGES = ("jinja2", "matplotlib")


def check_pages(what: str) -> None:
    """Raises: RecipeError if ``what``, which ends in a page, would find no package to make it with."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise RecipeError(
            f"{what} makes a page, which needs {' and '.join(missing)}, not installed here: pip install"
            f" {' '.join(missing)} (the extra `report` has both)"
        )
