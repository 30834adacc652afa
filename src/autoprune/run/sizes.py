"""Sizes of memory in words, both ways."""

from __future__ import annotations

import re

from autoprune.errors import RecipeError

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_memory(text: str) -> int:
    """Bytes of a size such as ``8GiB``, ``500 MB`` or ``2e9``. Raises: RecipeError if it is none."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    unit = match[2].upper() if match else ""
    try:
        if not match or (unit not in UNITS and unit + "B" not in UNITS):
            raise ValueError(text)
        return int(float(match[1]) * UNITS.get(unit, UNITS.get(unit + "B", 1)))
    except ValueError as error:
        raise RecipeError(f"--memory {text!r} is no size; write for example 8GiB or 500MB") from error


def human(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
