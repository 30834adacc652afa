"""Matplotlib figures as inline SVG that takes the page's colours, so that it follows light and dark mode.

Drawings use stand-in colours. In the SVG they are replaced by CSS variables, whose values the page takes from the
palettes here; in a PNG (``png.py``) by the colours of the light palette.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Series after Okabe and Ito, darkened or lightened until they stand out from the paper; readable with any colour
# vision.
LIGHT = {
    "paper": "#ffffff",
    "desk": "#f4f5f7",
    "ink": "#1c2127",
    "muted": "#5c6670",
    "lines": "#dde1e6",
    "accent": "#0a62a0",
    "series0": "#cc7a00",
    "series1": "#0072b2",
    "series2": "#00875f",
    "series3": "#a8478a",
    "series4": "#1f8fc4",
    "series5": "#c24a00",
    "series6": "#6b6b6b",
    "series7": "#8a7d00",
}
DARK = {
    "paper": "#1a1e24",
    "desk": "#12151a",
    "ink": "#e8ebee",
    "muted": "#a2acb6",
    "lines": "#343b44",
    "accent": "#7cc0f4",
    "series0": "#f0a93a",
    "series1": "#56b4e9",
    "series2": "#2fc298",
    "series3": "#dd8fc2",
    "series4": "#8fd0f5",
    "series5": "#f5804a",
    "series6": "#b5b5b5",
    "series7": "#e6da55",
}
PRINT = LIGHT | {"desk": "#ffffff", "ink": "#000000", "muted": "#444444", "lines": "#cccccc", "accent": "#0a4a7a"}

INK, MUTED, LINES, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{i:02x}" for i in range(8))
NAMES: dict[str, str] = {INK: "ink", MUTED: "muted", LINES: "lines", PAPER: "paper"} | {
    colour: f"series{i}" for i, colour in enumerate(SERIES)
}

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
    """One picture: what it shows in words, its SVG, and the figure that the SVG was made of."""

    title: str
    svg: str
    figure: Figure = field(compare=False, repr=False)

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
    return Drawing(title, _cleaned(buffer.getvalue(), title), figure)


def css(palette: dict[str, str]) -> str:
    """A palette as declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def _cleaned(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"| ?font-family: [^;"]*;', "", svg)  # the page's own font is used
    svg = re.sub(r"\s+", " ", svg).replace(" <", "<").replace("<g/>", "")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    for stand_in, name in NAMES.items():
        svg = svg.replace(stand_in, "currentColor" if name == "ink" else f"var(--{name})")
    opening = svg[: svg.index(">") + 1]
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None
    width = float(view[0].split()[2])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title" style="max-width: {width:.0f}px"'
        f" {view[0]}>"
    )
    return f'{head}<title id="title">{escape(title)}</title>' + svg[len(opening) :].strip()
