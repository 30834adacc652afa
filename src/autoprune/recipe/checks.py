"""What can be wrong with a recipe's values by themselves: bounds, places, protocols. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import RecipeError
from autoprune.recipe.options import PROTOCOLS, CalibrationOptions, EvaluationOptions, ZeroShotOptions

TEXTS = ("calibration_data", "eval_data")
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of one part and of all together: what file systems take


def check_bounds(options: Any) -> None:
    """Judges every option by the bounds that its field declares.

    Raises: RecipeError naming the option, its value and what is allowed.
    """
    for field in dataclasses.fields(options):
        name, value, facts = field.name, getattr(options, field.name), field.metadata
        if "choices" in facts and value is not None and value not in facts["choices"]:
            close = difflib.get_close_matches(str(value), list(facts["choices"]), 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise RecipeError(
                f"--{name} {_short(str(value))} is unknown{hint}; choose from {', '.join(facts['choices'])}"
            )
        if value is None:
            continue
        if "at_least" in facts and value < facts["at_least"]:
            raise RecipeError(f"--{name} {value} is too small; it must be at least {facts['at_least']}")
        if facts.get("fraction") and not 0 <= value <= 1:
            raise RecipeError(f"--{name} {value} is not a fraction; it must lie in [0, 1]")
        if facts.get("positive") and not 0 < value < float("inf"):
            raise RecipeError(f"--{name} {value} must be a positive number, such as {field.default}")


def check_places(places: Mapping[str, str | None], read: Mapping[str, str | None], texts: Iterable[str]) -> None:
    """Raises: RecipeError for a word that can't be the name of a file or a directory."""
    for name, place in places.items():
        if place == "" or not _may_be_a_path(place or ""):
            raise RecipeError(
                f"--{name} is empty or no name of a directory ({_short(place)}); name one, or leave the flag out"
            )
    for name, word in [*read.items(), *(("eval_data", word) for word in texts)]:
        if not _may_be_a_path(word or ""):
            raise RecipeError(
                f"--{name} {_short(word)} is no name: too long for a file or a directory, or with a zero in it"
                + ("; a text itself is given in Python, in a list: [text]" if name in TEXTS else "")
            )


def check_protocol(calibration: CalibrationOptions, evaluation: EvaluationOptions) -> None:
    """Raises: RecipeError if a value contradicts the protocol that was asked for."""
    name = calibration.protocol
    for option, fixed in PROTOCOLS[name].items() if name else ():
        chosen = evaluation.eval_data if option == "eval_data" else getattr(calibration, option)
        if chosen != fixed:
            said, ours = (",".join(v) if isinstance(v, tuple) else v for v in (chosen, fixed))
            raise RecipeError(
                f"--{option} {said} contradicts --protocol {name}, which fixes it at {ours}; leave out one of the two"
            )


def check_tasks_chosen(options: ZeroShotOptions, *, saved: bool) -> None:
    """Raises: RecipeError if no task is named although something is said about them, or they are to be ``saved``."""
    if "" in options.tasks or (saved and not options.tasks):
        raise RecipeError("--tasks is empty or has an empty part; give a comma list such as boolq,rte")
    for name in ("limit", "num_fewshot", "tasks_path", "apply_chat_template"):
        value = getattr(options, name)
        if value is not None and value is not False and not options.tasks:
            raise RecipeError(
                f"--{name} is about zero-shot tasks, but none are measured; name some with --tasks, or give"
                " --save_zeroshot"
            )


def _may_be_a_path(word: str) -> bool:
    fits = len(word.encode()) < LONGEST_PATH
    return "\0" not in word and fits and all(len(part.encode()) <= LONGEST_NAME for part in re.split("[/,]", word))


def _short(word: str | None) -> str:
    return repr(word) if word is None or len(word) <= 60 else f"{word[:60]!r}…"


def comma_list(text: str) -> tuple[str, ...]:
    """The parts between commas; a comma in the name of a file that exists divides nothing."""
    parts, found = text.split(","), list[str]()
    while parts:
        ends = range(len(parts), 1, -1)
        joined = next((end for end in ends if _is_file(",".join(parts[:end]).strip())), 1)
        found.append(",".join(parts[:joined]).strip())
        parts = parts[joined:]
    return tuple(found)


def _is_file(word: str) -> bool:
    return _may_be_a_path(word) and Path(word).expanduser().is_file()
