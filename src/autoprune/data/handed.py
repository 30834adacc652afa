"""From options as Python has them to a recipe: data that were handed over get a word in it, and travel beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from autoprune.data.given import IDS, TAKEN, Given, given
from autoprune.data.sources import NAMED, Source, parse_source, reads_like_text
from autoprune.errors import DataError
from autoprune.recipe.checks import comma_list, short
from autoprune.recipe.recipe import Recipe, recipe_from_flat, validated

CALIBRATION, EVALUATION = "--calibration_data", "--eval_data"
Held = dict[tuple[str, str], Source]  # by flag and word
LONGEST_ROW = 2048  # tokens: a single row beyond, where no length is given, is a text from which windows are cut
LONGEST_NAME = 60  # letters of a text's name, which is the head of a column


def recipe_given(values: Mapping[str, Any]) -> Recipe:
    """``recipe_from_flat``, where ``calibration_data`` and ``eval_data`` may also be what ``data/given.py`` takes.

    Rows of token ids say themselves how many there are and how long: ``nsamples`` and ``seqlen`` follow from them
    where they are not given. Raises: DataError for data that can't be used, RecipeError as ``recipe_from_flat`` does.
    """
    held = Held()
    if values.get("eval_data", ()) is None:  # no text at all: whoever was asked has seen it
        values = {name: value for name, value in values.items() if name != "eval_data"}
    words = _words(values, held, values.get("nsamples"))
    shape = {} if values.get("protocol") is not None else _shape(held, values.get("seqlen"))
    return dataclasses.replace(recipe_from_flat({**shape, **values, **words}), held=held)


def with_data(recipe: Recipe, calibration_data: Any = None, eval_data: Any = None) -> Recipe:
    """The recipe with other texts. Raises: DataError and RecipeError as ``recipe_given`` does."""
    values = {"calibration_data": calibration_data, "eval_data": eval_data}
    values = {name: value for name, value in values.items() if value is not None}
    if not values:
        return recipe
    held, calibration, evaluation = Held(), recipe.calibration, recipe.evaluation
    words = {**values, **_words(values, held, calibration.nsamples)}
    shape = _shape(held, calibration.seqlen)
    if "calibration_data" in words:
        nsamples = min(calibration.nsamples, shape.get("nsamples", calibration.nsamples))
        word = str(words["calibration_data"])
        calibration = dataclasses.replace(calibration, calibration_data=word, nsamples=nsamples)
    if "eval_data" in words:
        texts = words["eval_data"]
        texts = texts if isinstance(texts, tuple) else comma_list(str(texts))
        evaluation = dataclasses.replace(evaluation, eval_data=texts)
    calibration = dataclasses.replace(calibration, seqlen=calibration.seqlen or shape.get("seqlen"))
    held = {**recipe.held, **held}
    return validated(dataclasses.replace(recipe, calibration=calibration, evaluation=evaluation, held=held))


def _words(values: Mapping[str, Any], held: Held, nsamples: Any) -> dict[str, Any]:
    """Words for the texts among the values; what they stand for goes to ``held``."""
    words: dict[str, Any] = {}
    if (data := values.get("calibration_data")) is not None and not isinstance(data, (str, PathLike)):
        words["calibration_data"] = _hold(_source(_calibration(data, nsamples), CALIBRATION), held)
    if (data := values.get("eval_data")) is not None and not isinstance(data, (str, PathLike)):
        words["eval_data"] = _evaluation(data, held)
    return words


def _shape(held: Held, seqlen: Any) -> dict[str, int]:
    """Number and length of rows of token ids, those that calibrate first; nothing of a single one that is longer than
    a window, for that is a text.
    """
    longest = seqlen if isinstance(seqlen, int) else LONGEST_ROW
    rows = {
        flag: source.given.ids
        for (flag, _), source in reversed(held.items())
        if source.kind == "tokens"
        and source.given
        and source.given.ids is not None
        and (len(source.given.ids) > 1 or source.given.ids.shape[1] <= longest)
    }
    first = rows.get(CALIBRATION, rows.get(EVALUATION))
    if first is None:
        return {}
    return {"seqlen": first.shape[1], **({"nsamples": first.shape[0]} if CALIBRATION in rows else {})}


def source_of(recipe: Recipe, word: str, flag: str) -> Source:
    """What a word of the recipe stands for: what was handed over under it, else what it says. Raises: DataError."""
    found: Source | None = recipe.held.get((flag, word))
    return found or parse_source(word, flag)


def _source(found: Given, flag: str, name: str | None = None) -> Source:
    return Source(found.kind, name or found.title, flag, given=found)


def _hold(source: Source, held: Held) -> str:
    """Keeps a source under a word that tells it from others, which it returns."""
    found = source.given
    assert found is not None
    named = source.name if source.name == found.title else f"{source.name}: {found.title}"
    word = f"{named} (sha256 {found.sha256[:12]})"
    held[source.flag, word] = source
    return word


def _calibration(data: Any, nsamples: Any) -> Given:
    words = [item for item in data if _is_word(item)] if isinstance(data, (list, tuple)) else []
    if words:
        raise DataError(
            f"{CALIBRATION}: a list is taken for texts, and {short(str(words[0]))} is the name of a source; give"
            " the name alone, without a list"
        )
    return given(data, CALIBRATION, nsamples if isinstance(nsamples, int) else None)


def _evaluation(data: Any, held: Held) -> tuple[str, ...]:
    """The words for all texts that were handed over: several in a dictionary by name, or in a list."""
    if isinstance(data, Mapping) and IDS not in data and type(data).__module__.partition(".")[0] != "datasets":
        return tuple(_named(name, value, held) for name, value in data.items())
    if not isinstance(data, (list, tuple)):
        return (_hold(_source(given(data, EVALUATION), EVALUATION), held),)
    if not data:
        raise DataError(f"{EVALUATION} is an empty list; give {TAKEN}")
    if all(isinstance(item, (str, PathLike)) for item in data):
        return _words_or_texts(data, held)
    if any(isinstance(item, (str, PathLike)) or _is_text(item) for item in data):
        return tuple(
            str(item)
            if isinstance(item, (str, PathLike))
            else _hold(_source(given(item, EVALUATION), EVALUATION), held)
            for item in data
        )
    return (_hold(_source(given(data, EVALUATION), EVALUATION), held),)


def _named(name: Any, value: Any, held: Held) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(
            f"{EVALUATION}: {short(name)} is no name for a text; give a word of {LONGEST_NAME} letters at most"
        )
    if isinstance(value, (str, PathLike)):
        word = f"{name}: {value}"
        held[EVALUATION, word] = dataclasses.replace(parse_source(str(value), EVALUATION), name=name)
        return word
    return _hold(_source(given(value, EVALUATION), EVALUATION, name), held)


def _words_or_texts(data: Sequence[Any], held: Held) -> tuple[str, ...]:
    """A list of strings: names of sources, or a text itself, which has spaces in it.

    Raises: DataError if it is both.
    """
    texts = [item for item in data if not _is_word(item) and reads_like_text(item)]
    if not texts and any(str(item).strip() for item in data):
        return tuple(str(item) for item in data)
    if names := [item for item in data if _is_word(item)]:
        raise DataError(
            f"{EVALUATION}: {short(str(names[0]))} is the name of a source and {short(str(texts[0]))} a text, in"
            f" one list; give them names of their own: eval_data={{'mine': [texts], 'other': {str(names[0])!r}}}"
        )
    return (_hold(_source(given(list(data), EVALUATION), EVALUATION), held),)


def _is_word(item: Any) -> bool:
    """Whether an item is surely the name of a source and no text."""
    if isinstance(item, PathLike) or (isinstance(item, str) and item in (*NAMED, "demo")):
        return True
    try:
        return isinstance(item, str) and Path(item).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a name, or with a zero in it
        return False


def _is_text(item: Any) -> bool:
    """Whether an item of a list is a text by itself, and not a part of one."""
    if isinstance(item, (list, tuple)):
        return bool(item) and isinstance(item[0], str)
    return hasattr(item, "column_names")
