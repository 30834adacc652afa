"""The errors that a user can cause; each says what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 80  # letters of a user's word that an error quotes


class AutoPruneError(Exception):
    """Base of every error that a user can cause.

    The command line prints the message alone and exits with status 2; anything that is not an
    ``AutoPruneError`` is a defect of the program and keeps its traceback.
    """

    everywhere = False  # whether all processes of a run know of it, so that one of them may speak for all


class RecipeError(AutoPruneError):
    """A choice in the recipe is impossible, or two choices contradict each other."""


class ModelError(AutoPruneError):
    """A model can't be found, read, understood or trusted."""


class DataError(AutoPruneError):
    """A text or token source can't be found, read or used."""


class NumericsError(AutoPruneError):
    """Numbers went bad: NaN, infinity, or a matrix that can't be factorised."""


class OutputError(AutoPruneError):
    """Results can't be written where the user asked for them."""


class RankError(AutoPruneError):
    """Another process of the same run was lost, or the processes do not fit together."""


class ShortageError(AutoPruneError):
    """Memory ran out; the message says which options need less of it."""


def unknown(value: str, choices: Iterable[str]) -> str:
    """``'wnda' is unknown (did you mean wanda?); choose from magnitude, wanda``: how every word out of a list is
    refused.
    """
    known = list(choices)
    close = difflib.get_close_matches(value, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    quoted = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    return f"{quoted!r} is unknown{hint}; choose from {', '.join(known)}"
