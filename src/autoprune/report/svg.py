"""Matplotlib figures as inline SVG that takes the page's colours, so that it follows light and dark mode.

Drawings use stand-in colours; in the SVG they are replaced by CSS variables (see ``templates/report.html.j2``).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINES, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{i:02x}" for i in range(8))
VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", LINES: "var(--lines)", PAPER: "var(--paper)"}
VARIABLES |= {colour: f"var(--series{i})" for i, colour in enumerate(SERIES)}

UNITS_PER_INCH = 72  # matplotlib's SVG unit is the point; the page shows one unit as one pixel
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "autoprune",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 12,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "grid.color": LINES,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 11,
}


@dataclass(frozen=True)
class Drawing:
    """One picture: what it shows in words, and its SVG."""

    title: str
    svg: str

    def inline(self, prefix: str) -> str:
        """The SVG with every id under ``prefix``, so that several fit on one page."""
        svg = re.sub(r'\b(id|aria-labelledby)="', rf'\1="{prefix}-', self.svg)
        return svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this many SVG units in the page's style; leaves matplotlib's global state alone."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH), layout="constrained")


def finish(figure: Figure, title: str) -> Drawing:
    """The drawing of a figure, the same bytes every time. Call it inside ``canvas``."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return Drawing(title, _cleaned(buffer.getvalue(), title))


def _cleaned(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"| ?font-family: [^;"]*;', "", svg)  # the page's own font is used
    svg = re.sub(r"\s+", " ", svg).replace(" <", "<").replace("<g/>", "")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    opening = svg[: svg.index(">") + 1]
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None
    width = float(view[0].split()[2])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title" style="max-width: {width:.0f}px" {view[0]}>'
    return f'{head}<title id="title">{escape(title)}</title>' + svg[len(opening) :].strip()
