"""What a page consists of, and how it is put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from autoprune.report.draw import DARK, LIGHT, PRINT, Drawing, css
from autoprune.results.table import Table, parts

FOLDS = 3  # so many tables stand open to the eye; more are folded together


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together, with the sentence that explains them."""

    pictures: tuple[Drawing, ...]
    caption: str


@dataclass(frozen=True)
class Fold:
    """A table that is opened by a click."""

    summary: str
    table: Table


@dataclass(frozen=True)
class Section:
    """One part of the page; left out when it has neither figures nor tables nor notes."""

    title: str
    lead: str = ""
    table: Table | None = None
    figures: tuple[Figure, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()
    inside: str = "tables"  # what the folds hold, where there are many

    @property
    def anchor(self) -> str:
        """What the contents link to."""
        return re.sub(r"\W+", "-", self.title).strip("-").lower()

    @property
    def shown(self) -> bool:
        """Whether there is anything in it."""
        return bool((self.table and self.table.rows) or self.figures or self.folds or self.notes)


def page_of(sections: Sequence[Section], words: Mapping[str, Any]) -> str:
    """One static HTML page; ``words`` are title, subtitle, command, files and facts. Empty sections are left out."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("autoprune.report").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["parts"] = parts
    environment.filters["tie"] = lambda words: words.replace(" %", "\N{NO-BREAK SPACE}%")
    counter = iter(range(1, 1_000_000))

    def inline(picture: Drawing) -> str:
        return picture.inline(f"p{next(counter)}")

    palettes = {"light": css(LIGHT), "dark": css(DARK), "print": css(PRINT)}
    shown = [section for section in sections if section.shown]
    return environment.from_string(source).render(**words, sections=shown, inline=inline, folds_open=FOLDS, **palettes)
