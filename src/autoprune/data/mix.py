"""Several calibration sources at once, each with its share of the windows: ``c4:0.5,chat.jsonl:0.5``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoprune.data.sources import GIVEN, reads_like_text
from autoprune.data.windows import CALIBRATION_FLAG, Windows
from autoprune.errors import DataError
from autoprune.recipe.checks import may_be_a_path, short

_PART = re.compile(r"\s*(?P<word>.+?):(?P<weight>-?\d*\.?\d+(?:e-?\d+)?)\s*(?:,|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A source of a mix, as the user named it, and its share of the windows in (0, 1]."""

    word: str
    weight: float


def split_mix(word: str) -> tuple[Part, ...]:
    """The sources of a mix; none if the word names a single one.

    A comma ends a source only behind its weight, so names may hold commas and colons; a word that is a file, or
    without a comma, is no mix. Raises: DataError if weights are missing, or do not add up to 1, or if a source is
    named twice: it would give the same windows twice.
    """
    if "," not in word or GIVEN.search(word) or (may_be_a_path(word) and Path(word).expanduser().is_file()):
        return ()
    parts, at = list[Part](), 0
    while at < len(word):
        match = _PART.match(word, at)
        if match is None:
            text = "; a text itself is given in Python, in a list: [text]" if reads_like_text(word) else ""
            raise DataError(
                f"{CALIBRATION_FLAG} {short(word)}: {short(word[at:])} names no source with its share of the windows;"
                f" a mix is written like c4:0.5,chat.jsonl:0.5{text}"
            )
        parts.append(Part(match["word"], float(match["weight"])))
        at = match.end()
    words = [part.word for part in parts]
    if twice := next((name for name in words if words.count(name) > 1), None):
        raise DataError(
            f"{CALIBRATION_FLAG} {word}: {twice} is named twice and would give the same windows twice; add up its"
            " shares"
        )
    total = math.fsum(part.weight for part in parts)
    if not math.isclose(total, 1, abs_tol=1e-6) or min(part.weight for part in parts) <= 0:
        shares = " + ".join(f"{part.weight:g}" for part in parts)
        raise DataError(
            f"{CALIBRATION_FLAG} {word}: the shares must be above 0 and add up to 1, but {shares} is {total:g};"
            " mend them"
        )
    return tuple(parts)


def words_of(word: str) -> list[str]:
    """The sources that a word names, be it one or a mix. Raises: DataError as ``split_mix`` does."""
    return [part.word for part in split_mix(word)] or [word]


def counts(parts: Sequence[Part], nsamples: int) -> list[int]:
    """Windows of each source, exactly ``nsamples`` in all: shares rounded down, what is left over to the largest
    remainders, of equal ones to the first.

    Raises: DataError if a source gets none.
    """
    wanted = [part.weight * nsamples for part in parts]
    found = [math.floor(share + 1e-9) for share in wanted]
    order = sorted(range(len(parts)), key=lambda i: (round(found[i] - wanted[i], 9), i))
    for i in order[: nsamples - sum(found)]:
        found[i] += 1
    if 0 in found:
        least = parts[found.index(0)]
        raise DataError(
            f"{CALIBRATION_FLAG}: {least.word} with a share of {least.weight:g} gets none of {nsamples} windows; give"
            " it more, or raise --nsamples"
        )
    return found


def mixed(parts: Sequence[Part], drawn: Sequence[Windows]) -> Windows:
    """The windows of all sources evenly spread among each other, so that any run of them is mixed as the whole is."""
    places = sorted(
        ((i + 0.5) / len(windows.ids), part, i) for part, windows in enumerate(drawn) for i in range(len(windows.ids))
    )
    ids = torch.stack([drawn[part].ids[i] for _, part, i in places])
    records = [{"weight": part.weight, **windows.provenance} for part, windows in zip(parts, drawn, strict=True)]
    facts = {
        "source": ",".join(f"{record['source']}:{record['weight']:g}" for record in records),
        "kind": "mix",
        "purpose": "calibration",
        "parts": records,
        "seed": drawn[0].provenance["seed"],
        "distinct_windows": sum(windows.provenance["distinct_windows"] for windows in drawn),
        "utf8_bytes": None,
        "windows": ids.shape[0],
        "seqlen": ids.shape[1],
    }
    return Windows(ids, {**facts, "fingerprint": Windows(ids, facts).fingerprint})
