"""What all pictures have in common: width, colours and marks of variants, words at axes, ticks, legends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report.draw import PAPER, SERIES
from autoprune.results.tidy import Results
from autoprune.results.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360.0  # SVG units; the page shows a unit as a pixel: a little less on a telephone, more where there is room
LOG_FROM = 8.0  # a range wider than this factor gets a logarithmic axis
MARKERS = "osD^vPX*"
SHORT = 20  # letters: two columns of names up to this length fit below a picture


def colours_of(results: Results) -> dict[str, str]:
    """A colour for each first step in order of appearance, the same in every picture."""
    names = dict.fromkeys(v.family for v in results.variants if not v.dense)
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def look_of(variant: Variant, drawn: Sequence[Variant], colours: dict[str, str]) -> dict[str, Any]:
    """Colour by first step, ring or dot by whether others followed, and a shape that tells those alike apart."""
    colour = colours[variant.family]
    rivals = dict.fromkeys(v.name for v in drawn if (v.family, v.refined) == (variant.family, variant.refined))
    shape: dict[str, Any] = {"marker": MARKERS[list(rivals).index(variant.name) % len(MARKERS)], "markersize": 6}
    line = "-" if variant.refined else (0, (1, 1))
    return shape | {"color": colour, "linestyle": line, "markerfacecolor": colour if variant.refined else PAPER}


def axis_words(words: str, log: bool) -> str:
    """An axis's name, which says so if it is logarithmic."""
    return words + (", log scale" if log else "")


def note(axes: Axes, words: str, place: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """Words beside a place in the drawing."""
    axes.annotate(words, place, xytext=offset, textcoords="offset points", fontsize=11, **options)


def legend(figure: Figure, names: Sequence[str]) -> None:
    """Below the picture, in as many columns as there is room for."""
    figure.legend(loc="outside lower left", ncols=_legend_columns(names), columnspacing=1.2, handletextpad=0.5)


def _legend_columns(names: Sequence[str]) -> int:
    return 2 if max(map(len, names), default=0) <= SHORT else 1


def legend_height(names: Sequence[str]) -> float:
    """SVG units that it takes."""
    return 19.0 * math.ceil(len(set(names)) / _legend_columns(names)) + 8


def whole_ticks(axes: Axes) -> None:
    """Whole numbers along the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def ticks(axes: Axes, log: bool, vertical: bool = False) -> None:
    """Few ticks, written out: 20, 50, 100, 1e+06."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis = axes.yaxis if vertical else axes.xaxis
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    wide = log and high / low > 300
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=6) if log else MaxNLocator(5))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.6g}" if 1e-4 <= value < 1e6 or value == 0 else f"{value:.0e}")
    )
    axis.set_minor_formatter(NullFormatter())
    if log:
        axis.minorticks_off()
