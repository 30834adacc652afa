"""Matplotlib figures as inline SVG that takes the page's colours, so that it follows light and dark mode; or as a PNG.

Drawings use stand-in colours. In the SVG they are replaced by CSS variables, whose values the page takes from the
palettes here; in a PNG by the colours of the light palette.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Series after Okabe and Ito, darkened or lightened until they stand out from the paper; readable with any colour
# vision. Heat runs from near the paper to far from it, ``onheat`` are numbers that stand on it.
LIGHT = {"paper": "#ffffff", "desk": "#f4f5f7", "ink": "#1c2127", "muted": "#5c6670", "lines": "#dde1e6"}
DARK = {"paper": "#1a1e24", "desk": "#12151a", "ink": "#e8ebee", "muted": "#a2acb6", "lines": "#343b44"}
LIGHT |= {"accent": "#0a62a0"}
DARK |= {"accent": "#7cc0f4"}
_SERIES = (
    ("#cc7a00", "#f0a93a"), ("#0072b2", "#56b4e9"), ("#00875f", "#2fc298"), ("#a8478a", "#dd8fc2"),
    ("#1f8fc4", "#8fd0f5"), ("#c24a00", "#f5804a"), ("#6b6b6b", "#b5b5b5"), ("#8a7d00", "#e6da55"),
)  # fmt: skip
_HEAT = ("#fbf7d5", "#e3f0b8", "#bfe2b5", "#85cbb7", "#4aaebd", "#2a86b4", "#25579c", "#152c74")
for _i, (_light, _dark) in enumerate(_SERIES):
    LIGHT[f"series{_i}"], DARK[f"series{_i}"] = _light, _dark
    LIGHT[f"heat{_i}"], DARK[f"heat{_i}"] = _HEAT[_i], _HEAT[-1 - _i]
    LIGHT[f"onheat{_i}"], DARK[f"onheat{_i}"] = ("#10161d" if step < 5 else "#ffffff" for step in (_i, 7 - _i))
PRINT = LIGHT | {"desk": "#ffffff", "ink": "#000000", "muted": "#444444", "lines": "#cccccc", "accent": "#0a4a7a"}

INK, MUTED, LINES, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES, HEAT, ON_HEAT = (tuple(f"#01{kind:02d}{i:02x}" for i in range(8)) for kind in (2, 3, 4))
NAMES: dict[str, str] = {INK: "ink", MUTED: "muted", LINES: "lines", PAPER: "paper"} | {
    colour: f"{name}{i}"
    for name, colours in (("series", SERIES), ("heat", HEAT), ("onheat", ON_HEAT))
    for i, colour in enumerate(colours)
}

WIDEST = 4 / 3  # pixels that the page shows a unit as where there is room
LETTERS = 46  # of a title that fits above a picture in full size
TITLE = 30  # units of height for the title above each picture
DOTS_PER_INCH = 200
PROPERTIES = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
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
    "axes.labelsize": 11.5,
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
    widest = WIDEST * float(view[0].split()[2])
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title"'
        f' style="max-width: {widest:.0f}px" {view[0]}>'
    )
    return f'{head}<title id="title">{escape(title)}</title>' + svg[len(opening) :].strip()


def to_png(drawings: Sequence[Drawing]) -> bytes:
    """Pictures side by side, each under its title, in the page's light colours; the same bytes every time.

    The drawings' figures are used up by it.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    parts = []
    for drawing in drawings:
        figure, (width, height) = drawing.figure, drawing.figure.get_size_inches()
        figure.set_size_inches(width, height + TITLE / UNITS_PER_INCH)
        figure.set_dpi(DOTS_PER_INCH)
        figure.set_facecolor(LIGHT["paper"])
        size = min(12.0, 12.0 * LETTERS / len(drawing.title))
        figure.suptitle(drawing.title, x=0.01, ha="left", fontsize=size, fontweight="bold", color=LIGHT["ink"])
        _recolour(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        parts.append(np.asarray(canvas.buffer_rgba()).copy())
    buffer = io.BytesIO()
    tallest = max(len(part) for part in parts)
    parts = [np.pad(part, ((0, tallest - len(part)), (0, 0), (0, 0)), constant_values=255) for part in parts]
    imsave(buffer, np.hstack(parts), format="png", metadata={"Software": None})  # type: ignore[dict-item]
    return buffer.getvalue()


def _recolour(figure: Figure) -> None:
    """Puts colours in the place of the stand-ins, in everything that was drawn."""
    for artist in figure.findobj():
        for name in PROPERTIES:
            if reader := getattr(artist, f"get_{name}", None):
                old = reader()
                if (new := _in_light(old)) is not None:
                    getattr(artist, f"set_{name}")(new)


def _in_light(colour: Any) -> Any:
    """The light palette's colour for a stand-in, or for a list of them; None for what is none."""
    from matplotlib.colors import is_color_like, to_hex

    if is_color_like(colour):
        name = NAMES.get(to_hex(colour))
        return LIGHT[name] if name else None
    several = (
        [_in_light(one) for one in colour] if isinstance(colour, (list, tuple)) or hasattr(colour, "shape") else []
    )
    return several if several and None not in several else None
