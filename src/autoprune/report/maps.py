"""Pictures of layers and sub-blocks: errors, sparsities, and what LLM-Barber exchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoprune.report.plots import WIDTH, plain_ticks
from autoprune.report.svg import LINES, MUTED, PAPER, SERIES, Drawing, canvas, finish
from autoprune.report.views import Variant, short_name, sparsity_before
from autoprune.results.types import PruningSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

Cells = dict[tuple[str, int], float]  # (layer, block) -> value


def error_map(variant: Variant, highest: float) -> Drawing | None:
    """Relative output error per layer and block; ``highest`` is the end of the shared colour scale."""
    summary = variant.summary
    cells = {(short_name(la), la.block): la.error for la in summary.layers if la.error is not None} if summary else {}
    return _map(cells, f"Relative error, {variant.title}, {variant.target}", highest, "{:.2f}") if cells else None


def sparsity_map(variant: Variant) -> Drawing | None:
    """Sparsity per layer and block, where it is not the same everywhere; the colours span what occurs."""
    cells = {(short_name(la), la.block): 100 * la.sparsity for la in variant.summary.layers} if variant.summary else {}
    if not cells or max(cells.values()) - min(cells.values()) < 0.5:
        return None
    return _map(
        cells,
        f"Sparsity in %, {variant.title}, {variant.target}",
        max(cells.values()),
        "{:.0f}",
        lowest=min(cells.values()),
    )


def movement_map(variant: Variant) -> Drawing | None:
    """How LLM-Barber moved sparsity between layers, in percentage points; None where nothing moved."""
    cells: Cells = {}
    for layer in variant.summary.layers if variant.summary else ():
        before = sparsity_before(layer)
        if before is not None:
            cells[short_name(layer), layer.block] = 100 * (layer.sparsity - before)
    most = max((abs(v) for v in cells.values()), default=0.0)
    return _map(cells, "Change of sparsity, percentage points", most, "{:+.1f}", lowest=-most) if most > 0 else None


def loss_dumbbells(summary: PruningSummary) -> Drawing | None:
    """Loss of every sub-block before (ring) and after (dot) the exchange."""
    pairs = [(sub.block, sub.name, sub.loss_before, sub.loss_after) for sub in summary.sub_blocks]
    return _dumbbells(pairs, "Output error of the sub-block", ("before", "after"), "mean squared error, log scale")


def exchange_dumbbells(summary: PruningSummary) -> Drawing | None:
    """Share of pairs that were inverted (ring) and that were exchanged (dot)."""
    pairs = [
        (s.block, s.name, 100 * s.inverted / s.compared, 100 * s.exchanged / s.compared)
        for s in summary.sub_blocks
        if s.compared
    ]
    return _dumbbells(pairs, "Pairs of a pruned and a kept weight", ("inverted", "exchanged"), "% of pairs, log scale")


def _map(cells: Cells, title: str, highest: float, form: str, lowest: float = 0.0) -> Drawing:
    """Rows are layers, columns blocks; the ink's opacity tells the value, its colour the sign where there are two."""
    names, blocks = list(dict.fromkeys(n for n, _ in cells)), sorted({b for _, b in cells})
    labelled = len(blocks) <= 8
    with canvas(WIDTH, 70 + (0 if labelled else 26) + 24 * len(names)) as figure:
        axes = figure.add_subplot()
        shades: dict[tuple[str, float], list[tuple[int, int]]] = {}
        for (name, block), value in cells.items():
            place = (blocks.index(block), names.index(name))
            shades.setdefault(_shade(value, lowest, highest), []).append(place)
            if labelled:
                axes.text(*place, _signed(form, value), ha="center", va="center_baseline", fontsize=10)
        for (colour, opacity), places in shades.items():
            axes.add_patch(_tiles(places, colour, opacity, gap=0.06 if labelled else 0.0))
        axes.set(xlim=(-0.5, len(blocks) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="block")
        axes.set_yticks(
            range(len(names)), [name.rpartition(".")[2] if _unique_tails(names) else name for name in names]
        )
        step = math.ceil(len(blocks) / 12)
        axes.set_xticks(range(0, len(blocks), step), [str(b) for b in blocks[::step]])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if not labelled:
            _key(figure, lowest, highest, form)
        return finish(figure, title)


def _signed(form: str, value: float) -> str:
    """The number in this form, without a sign if it is rounded to zero."""
    text = form.format(value)
    return text.lstrip("+-") if text.strip("+-0.") == "" else text


def _tiles(places: Sequence[tuple[int, int]], colour: str, opacity: float, gap: float) -> PathPatch:
    """Unit squares as one path, which keeps the page small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    half = 0.5 - gap / 2
    corners = [(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)]
    vertices = [(x + dx, y + dy) for x, y in places for dx, dy in corners]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(places)
    return PathPatch(Path(vertices, codes), facecolor=colour, alpha=opacity, linewidth=0)


def _key(figure: Figure, lowest: float, highest: float, form: str) -> None:
    """What the shades mean, where the tiles are too small for numbers."""
    from matplotlib.patches import Patch

    values = [lowest + (highest - lowest) * i / 4 for i in range(5)]
    shades = [_shade(v, lowest, highest) for v in values]
    handles = [
        Patch(facecolor=c, alpha=a, linewidth=0, label=form.format(v))
        for v, (c, a) in zip(values, shades, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=1.4, columnspacing=1.4)


def _shade(value: float, lowest: float, highest: float) -> tuple[str, float]:
    """Colour and opacity of a value; where both signs occur, distance from zero counts. Half opaque at most: numbers
    stand on it.
    """
    base = max(lowest, 0.0)
    reach = (abs(value) - base) / (highest - base) if highest > base else 1.0
    steps = math.floor(20 * min(max(reach, 0.0), 1.0)) if math.isfinite(reach) else 20
    return SERIES[0] if value < 0 else SERIES[1], round(0.05 + 0.0225 * steps, 4)


def _dumbbells(
    pairs: Sequence[tuple[int, str, float, float]], title: str, words: tuple[str, str], ylabel: str
) -> Drawing | None:
    """Two values per block and sub-block on a log axis, joined by a line; zero and what is not finite can't be
    drawn.
    """
    from matplotlib.ticker import MaxNLocator

    drawable = [(block, name, _positive(first), _positive(second)) for block, name, first, second in pairs]
    drawable = [p for p in drawable if not (math.isnan(p[2]) and math.isnan(p[3]))]
    if not drawable:
        return None
    kinds = list(dict.fromkeys(name for _, name, _, _ in drawable))
    with canvas(WIDTH, 300) as figure:
        axes = figure.add_subplot()
        for i, kind in enumerate(kinds):
            shift, colour = 0.26 * (i - (len(kinds) - 1) / 2), SERIES[(i + 3) % len(SERIES)]
            own = [p for p in drawable if p[1] == kind]
            xs, firsts, seconds = [p[0] + shift for p in own], [p[2] for p in own], [p[3] for p in own]
            axes.vlines(xs, firsts, seconds, color=colour, linewidth=1.6, zorder=2)
            axes.plot(xs, firsts, "o", color=colour, markerfacecolor=PAPER, markersize=_marker(len(own)))
            axes.plot(xs, seconds, "o", color=colour, markersize=_marker(len(own)))
            axes.plot([], [], color=colour, linewidth=4, label=kind)
        axes.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, label=words[0])
        axes.plot([], [], "o", color=MUTED, label=words[1])
        axes.set(yscale="log", xlabel="block", ylabel=ylabel)
        axes.grid(axis="y", color=LINES)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        plain_ticks(axes, True, vertical=True)
        figure.legend(loc="outside lower center", ncols=2 if len(kinds) == 2 else 3)
        return finish(figure, title)


def _positive(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else math.nan


def _marker(blocks: int) -> float:
    """Smaller dots where there are many."""
    return 6.0 if blocks <= 16 else 4.0


def _unique_tails(names: Sequence[str]) -> bool:
    return len({name.rpartition(".")[2] for name in names}) == len(names)
