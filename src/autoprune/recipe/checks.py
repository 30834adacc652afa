"""What can be wrong with a recipe's values by themselves: kinds, bounds, places, protocols. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from autoprune.errors import RecipeError, unknown
from autoprune.recipe.options import PROTOCOLS, CalibrationOptions, EvaluationOptions, ZeroShotOptions

Options = TypeVar("Options")
TEXTS = ("calibration_data", "eval_data")
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of one part and of all together: what file systems take


def as_declared(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A value from Python or TOML as the option's type wants it: paths become words, lists tuples, one word a list of
    one.

    Raises: RecipeError if it is of another type.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if field.metadata.get("place") and isinstance(value, str) and value.startswith("~"):
        value = str(Path(value).expanduser())
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):
            return comma_list(value) if field.metadata.get("comma") else (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(part, (str, os.PathLike)) for part in value):
            return tuple(os.fspath(part) for part in value)
        raise RecipeError(f"--{field.name} {short(value)} is no list of words{_handed(field.name, value)}")
    kinds = typing.get_args(hint) or (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    # The ratio has a judge of its own, core.sparsity.
    if float in kinds and (whole or field.name == "sparsity_ratio"):
        return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
        if str in kinds and (usual := field.metadata.get("choices") or [field.default] * bool(field.default)):
            wanted += f", such as {', '.join(map(repr, usual))}"
        raise RecipeError(
            f"--{field.name} {short(value)} is of the wrong kind; it must be {wanted}{_handed(field.name, value)}"
        )
    return value


def _handed(name: str, value: object) -> str:
    """Where texts themselves go, which are no words of a recipe."""
    if name not in TEXTS:
        return ""
    if value is None:
        return "; leave it out for the usual one"
    return f"; what is no name is given to autoprune.run(recipe, {name}=…) or autoprune.prune(…, {name}=…)"


def made(group: type[Options], values: Mapping[str, Any]) -> Options:
    """A dataclass of options, of those values that are its own. Raises: RecipeError if one is of another type."""
    hints = typing.get_type_hints(group)
    fields = [field for field in dataclasses.fields(cast("Any", group)) if field.name in values]
    return group(**{field.name: as_declared(field, hints[field.name], values[field.name]) for field in fields})


def model_word(model: object) -> str:
    """A model on disk or on the hub, as a recipe names it. Raises: RecipeError for anything that is no word."""
    if isinstance(model, str):
        return model
    if isinstance(model, os.PathLike):
        return str(os.fspath(model))
    raise RecipeError(f"the model is of type {type(model).__name__}; {_model_meant(model)}")


def _model_meant(model: object) -> str:
    """What to give instead of something that only has to do with a model."""
    has = dir(model)  # and nothing is read, for a property may raise
    if "step_options" in has:
        return "autoprune.run(recipe) does what a recipe says"
    if "model" in has and "named_parameters" not in has:  # a pipeline, a trainer, a result of ours
        also = ", or its .directory" if "directory" in has else ""
        tokenizer = ", and its .tokenizer as tokenizer=" if "tokenizer" in has else ""
        return f"give the model that it holds, its .model{also}{tokenizer}"
    return "give its hub id or its directory, which save_pretrained writes"


def place_word(place: object, name: str) -> Path:
    """A file or directory that an argument names, ``~`` followed. Raises: RecipeError for anything that is no path."""
    if not isinstance(place, (str, os.PathLike)):
        raise RecipeError(f"{name} is of type {type(place).__name__} ({short(place)}); give a path")
    word = os.fspath(place)
    if not isinstance(word, str) or not word.strip() or not may_be_a_path(word):
        raise RecipeError(f"{name} is no path of a file system ({short(word)}); give another one")
    return Path(word).expanduser()


_WORDS = {str: "a word", int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}


def short(value: object) -> str:
    """A user's value as an error quotes it: a line of it, no more."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_bounds(options: Any) -> None:
    """Judges every option by the bounds that its field declares.

    Raises: RecipeError naming the option, its value and what is allowed.
    """
    for field in dataclasses.fields(options):
        name, value, facts = field.name, getattr(options, field.name), field.metadata
        if "choices" in facts and value is not None and value not in facts["choices"]:
            raise RecipeError(f"--{name} {unknown(str(value), facts['choices'])}")
        if value is None:
            continue
        if "at_least" in facts and not value >= facts["at_least"]:  # NaN is not
            raise RecipeError(f"--{name} {value} is too small; it must be at least {facts['at_least']}")
        if facts.get("fraction") and not 0 <= value <= 1:
            raise RecipeError(f"--{name} {value} is not a fraction; it must lie in [0, 1]")
        if facts.get("positive") and not 0 < value < float("inf"):
            raise RecipeError(f"--{name} {value} must be a positive number, such as {field.default}")


def check_places(places: Mapping[str, str | None], read: Mapping[str, str | None], texts: Iterable[str]) -> None:
    """Raises: RecipeError for a word that can't be the name of a file or a directory."""
    for name, place in places.items():
        if place == "" or not may_be_a_path(place or ""):
            raise RecipeError(
                f"--{name} is empty or no name of a directory ({short(place)}); name one, or leave the flag out"
            )
    for name, word in [*read.items(), *(("eval_data", word) for word in texts)]:
        if not may_be_a_path(word or "", several=name in TEXTS):
            raise RecipeError(
                f"--{name} {short(word)} is no name: too long for a file or a directory, or with a zero in it"
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


def may_be_a_path(word: str, *, several: bool = False) -> bool:
    """Whether a file system takes the word, or ``several`` with commas between them, for a name."""
    raw = word.encode(errors="surrogatepass")
    parts = re.split(b"[/,]" if several else b"/", raw)
    return b"\0" not in raw and len(raw) < LONGEST_PATH and all(len(part) <= LONGEST_NAME for part in parts)


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
    return may_be_a_path(word) and Path(word).expanduser().is_file()
