"""The pictures of the HTML report. Every function gives drawings of one width, which the page sets side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report import numbers
from autoprune.report.results import PruningSummary
from autoprune.report.svg import INK, LINES, MUTED, PAPER, SERIES, Drawing, canvas, finish
from autoprune.report.views import PRETTY, Text, Variant, is_dense, short_name, sparsity_before

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

WIDTH = 460.0  # SVG units; the page shows a unit as a pixel, or less on a narrow screen
FAMILIES = ("magnitude", "wanda", "sparsegpt")  # families with a colour of their own; others follow in order
LOG_FROM = 8.0  # a range wider than this factor gets a logarithmic axis
FAINT = 0.45  # opacity of the first pass, beside the solid of what LLM-Barber made of it
Cells = dict[tuple[str, int], float]  # (layer, block) -> value


def family_colours(variants: Sequence[Variant]) -> dict[str, str]:
    """One colour per first pass, the same in every picture."""
    names = dict.fromkeys([*FAMILIES, *(v.family for v in variants)])
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def perplexity_bars(variants: Sequence[Variant], text: Text) -> list[Drawing]:
    """Perplexity per method, one drawing per target, all on the same axis; the dense model is a dashed line."""
    pruned = [v for v in variants if not is_dense(v.rows[0]) and v.perplexity(text)]
    dense = next((s.mean for v in variants if is_dense(v.rows[0]) and (s := v.perplexity(text)) and math.isfinite(s.mean)), None)
    values = [s.mean for v in pruned if (s := v.perplexity(text)) and math.isfinite(s.mean)]
    known = values + ([dense] if dense is not None else [])
    if not known or not pruned:
        return []
    low, high = min(known), max(known)
    log = low > 0 and high / low > LOG_FROM
    limits = (low / (high / low) ** 0.03, high * (high / low) ** 0.42) if log else (0.0, high * 1.35 or 1.0)
    colours = family_colours(variants)
    drawings = []
    for target in dict.fromkeys(v.target for v in pruned):
        group = [v for v in pruned if v.target == target]
        with canvas(WIDTH, 66 + 30 * len(group)) as figure:
            axes = figure.add_subplot()
            axes.set(xlim=limits, xscale="log" if log else "linear", xlabel=f"perplexity on {text.label}" + (", log scale" if log else ""))
            _bars(axes, group, text, colours, dense if log and dense is not None else limits[0])
            _dense_line(axes, dense)
            plain_ticks(axes, log)
            drawings.append(finish(figure, f"Perplexity on {text.label} per method at {target}"))
    return drawings


def perplexity_curves(variants: Sequence[Variant], text: Text) -> list[Drawing]:
    """Perplexity against actual sparsity with error bars over seeds; nothing unless two levels were pruned."""
    points = [(v, s) for v in variants if (s := v.perplexity(text)) and math.isfinite(s.mean) and s.mean > 0]
    free = [(v, s) for v, s in points if not is_dense(v.rows[0]) and ":" not in v.target]
    if len({round(v.sparsity, 2) for v, _ in free}) < 2:
        return []
    means = [s.mean for _, s in points]
    colours = family_colours(variants)
    with canvas(WIDTH, 340) as figure:
        axes = figure.add_subplot()
        log = max(means) / min(means) > LOG_FROM
        axes.set(xlabel="sparsity, %", ylabel=f"perplexity on {text.label}", yscale="log" if log else "linear")
        axes.grid(axis="y")
        for name in dict.fromkeys((v.method, v.extra) for v, _ in free):
            line = sorted(((100 * v.sparsity, s) for v, s in free if (v.method, v.extra) == name), key=lambda p: p[0])
            first = next(v for v, _ in free if (v.method, v.extra) == name)
            _curve(axes, line, first, colours[first.family])
        dense = next((s.mean for v, s in points if is_dense(v.rows[0])), None)
        if dense is not None:
            axes.axhline(dense, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="Dense")
        plain_ticks(axes, log, vertical=True)
        figure.legend(loc="outside lower center", ncols=2)
        return [finish(figure, f"Perplexity on {text.label} against sparsity")]


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
    return _map(cells, f"Sparsity in %, {variant.title}, {variant.target}", max(cells.values()), "{:.0f}", lowest=min(cells.values()))


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
    pairs = [(s.block, s.name, 100 * s.inverted / s.compared, 100 * s.exchanged / s.compared) for s in summary.sub_blocks if s.compared]
    return _dumbbells(pairs, "Pairs of a pruned and a kept weight", ("inverted", "exchanged"), "% of pairs, log scale")


def _bars(axes: Axes, group: Sequence[Variant], text: Text, colours: dict[str, str], start: float) -> None:
    for i, variant in enumerate(group):
        spread = variant.perplexity(text)
        assert spread is not None
        finite = math.isfinite(spread.mean)
        end = spread.mean if finite else start
        axes.barh(i, end - start, left=start, height=0.68, color=colours[variant.family], alpha=1.0 if variant.rebuilt else FAINT)
        if finite and spread.sd:
            axes.errorbar(end, i, xerr=spread.sd, color=INK, linewidth=1.2, capsize=3)
        reach = max(end, end + (spread.sd or 0.0)) if finite else start
        _note(axes, numbers.perplexity_text(spread.mean, spread.sd), (reach, i), (6, 0), va="center")
    axes.set_yticks(range(len(group)), [_bar_label(group, i) for i in range(len(group))])
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bar_label(group: Sequence[Variant], i: int) -> str:
    """A rebuilt variant right below its first pass needs only name what was added."""
    variant, above = group[i], group[i - 1] if i else None
    if above is None or not variant.rebuilt or above.family != variant.family:
        return variant.title
    added = " + ".join(PRETTY.get(part, part) for part in variant.method.split("+")[1:])
    return f"+ {added}" + (f" ({variant.extra})" if variant.extra else "")


def _dense_line(axes: Axes, dense: float | None) -> None:
    if dense is None:
        return
    axes.axvline(dense, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
    _note(axes, f"dense {numbers.perplexity_text(dense)}", (dense, 1), (4, 6), xycoords=("data", "axes fraction"))


def _note(axes: Axes, words: str, place: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """Words beside a place in the drawing."""
    axes.annotate(words, place, xytext=offset, textcoords="offset points", fontsize=11, **options)


def _curve(axes: Axes, line: Sequence[tuple[float, Any]], variant: Variant, colour: str) -> None:
    xs, means, sds = [x for x, _ in line], [s.mean for _, s in line], [s.sd or 0.0 for _, s in line]
    face = colour if variant.rebuilt else PAPER
    style = "-" if variant.rebuilt else (0, (1, 1))
    axes.errorbar(
        xs, means, yerr=sds if any(sds) else None, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=6, markerfacecolor=face,
        capsize=3, label=variant.title,
    )  # fmt: skip


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
        axes.set_yticks(range(len(names)), [name.rpartition(".")[2] if _unique_tails(names) else name for name in names])
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
    handles = [Patch(facecolor=c, alpha=a, linewidth=0, label=form.format(v)) for v, (c, a) in zip(values, shades, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=1.4, columnspacing=1.4)


def _shade(value: float, lowest: float, highest: float) -> tuple[str, float]:
    """Colour and opacity of a value; where both signs occur, distance from zero counts."""
    base = max(lowest, 0.0)
    reach = (abs(value) - base) / (highest - base) if highest > base else 1.0
    steps = math.floor(20 * min(max(reach, 0.0), 1.0)) if math.isfinite(reach) else 20
    return SERIES[0] if value < 0 else SERIES[1], round(0.05 + 0.0375 * steps, 4)


def _dumbbells(pairs: Sequence[tuple[int, str, float, float]], title: str, words: tuple[str, str], ylabel: str) -> Drawing | None:
    """Two values per block and sub-block on a log axis, joined by a line; zero and what is not finite can't be drawn."""
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


def plain_ticks(axes: Axes, log: bool, vertical: bool = False) -> None:
    """Few ticks, written out: 20, 50, 100, 1e+06."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis = axes.yaxis if vertical else axes.xaxis
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    wide = log and high / low > 300
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=6) if log else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}" if 1e-4 <= value < 1e6 or value == 0 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())
    if log:
        axis.minorticks_off()


def _unique_tails(names: Sequence[str]) -> bool:
    return len({name.rpartition(".")[2] for name in names}) == len(names)
