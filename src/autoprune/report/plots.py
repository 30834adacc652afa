"""Pictures of perplexities. Every function gives drawings of one width, which the page sets side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report import numbers
from autoprune.report.svg import INK, MUTED, PAPER, SERIES, Drawing, canvas, finish
from autoprune.report.views import PRETTY, Text, Variant, is_dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 460.0  # SVG units; the page shows a unit as a pixel, or less on a narrow screen
FAMILIES = ("magnitude", "wanda", "sparsegpt")  # families with a colour of their own; others follow in order
LOG_FROM = 8.0  # a range wider than this factor gets a logarithmic axis
MARKERS = "osD^v"
SHORT = 26  # letters: two columns of names up to this length fit below a picture
FAINT = 0.45  # opacity of the first pass, beside the solid of what LLM-Barber made of it


def family_colours(variants: Sequence[Variant]) -> dict[str, str]:
    """One colour per first pass, the same in every picture."""
    names = dict.fromkeys([*FAMILIES, *(v.family for v in variants)])
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def perplexity_bars(variants: Sequence[Variant], text: Text) -> list[Drawing]:
    """Perplexity per method, one drawing per target, all on the same axis; the dense model is a dashed line."""
    pruned = [v for v in variants if not is_dense(v.rows[0]) and v.perplexity(text)]
    dense = next(
        (s.mean for v in variants if is_dense(v.rows[0]) and (s := v.perplexity(text)) and math.isfinite(s.mean)), None
    )
    values = [s.mean for v in pruned if (s := v.perplexity(text)) and math.isfinite(s.mean)]
    known = values + ([dense] if dense is not None else [])
    if not known or not pruned:
        return []
    low, high = min(known), max(known)
    log = low > 0 and high / low > LOG_FROM
    limits = (low / (high / low) ** 0.03, high * (high / low) ** 0.42) if log else (0.0, high * 1.4 or 1.0)
    colours = family_colours(variants)
    drawings = []
    for target in dict.fromkeys(v.target for v in pruned):
        group = [v for v in pruned if v.target == target]
        labels = [_bar_label(group, i) for i in range(len(group))]
        with canvas(WIDTH, 66 + 30 * len(group) + 6 * sum("\n" in label for label in labels)) as figure:
            axes = figure.add_subplot()
            axes.set(
                xlim=limits,
                xscale="log" if log else "linear",
                xlabel=f"perplexity on {text.label}" + (", log scale" if log else ""),
            )
            _bars(axes, group, text, colours, dense if log and dense is not None else limits[0])
            axes.set_yticks(range(len(group)), labels)
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
    names = [v.title for v, _ in free]
    with canvas(WIDTH, 260 + legend_height(names)) as figure:
        axes = figure.add_subplot()
        log = max(means) / min(means) > LOG_FROM
        axes.set(xlabel="sparsity, %", ylabel=f"perplexity on {text.label}", yscale="log" if log else "linear")
        axes.grid(axis="y")
        for name in dict.fromkeys((v.method, v.extra) for v, _ in free):
            line = sorted(((100 * v.sparsity, s) for v, s in free if (v.method, v.extra) == name), key=lambda p: p[0])
            first = next(v for v, _ in free if (v.method, v.extra) == name)
            _curve(axes, line, first, colours[first.family], marker_of(first, [v for v, _ in free]))
        dense = next((s.mean for v, s in points if is_dense(v.rows[0])), None)
        if dense is not None:
            axes.axhline(dense, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="Dense")
        plain_ticks(axes, log, vertical=True)
        figure.legend(loc="outside lower center", ncols=legend_columns(names))
        return [finish(figure, f"Perplexity on {text.label} against sparsity")]


def marker_of(variant: Variant, variants: Sequence[Variant]) -> str:
    """A shape that tells variants of one first pass apart, which share a colour: the first of each is round."""
    rivals = list(
        dict.fromkeys(
            (v.method, v.extra) for v in variants if (v.family, v.rebuilt) == (variant.family, variant.rebuilt)
        )
    )
    return MARKERS[rivals.index((variant.method, variant.extra)) % len(MARKERS)]


def legend_columns(names: Sequence[str]) -> int:
    """Two columns where the names are short enough for the picture's width."""
    return 2 if max(map(len, names), default=0) <= SHORT else 1


def legend_height(names: Sequence[str]) -> float:
    """Units of height that a legend of these names and the dense model needs."""
    return 19.0 * math.ceil((len(set(names)) + 1) / legend_columns(names)) + 8


def _bars(axes: Axes, group: Sequence[Variant], text: Text, colours: dict[str, str], start: float) -> None:
    for i, variant in enumerate(group):
        spread = variant.perplexity(text)
        assert spread is not None
        finite = math.isfinite(spread.mean)
        end = spread.mean if finite else start
        axes.barh(
            i,
            end - start,
            left=start,
            height=0.68,
            color=colours[variant.family],
            alpha=1.0 if variant.rebuilt else FAINT,
        )
        if finite and spread.sd:
            axes.errorbar(end, i, xerr=spread.sd, color=INK, linewidth=1.2, capsize=3)
        reach = max(end, end + (spread.sd or 0.0)) if finite else start
        _note(axes, numbers.perplexity_text(spread.mean, spread.sd), (reach, i), (6, 0), va="center")
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _bar_label(group: Sequence[Variant], i: int) -> str:
    """A rebuilt variant right below its first pass needs only name what was added; settings stand on a line of their
    own.
    """
    variant, above = group[i], group[i - 1] if i else None
    if above is None or not variant.rebuilt or above.family != variant.family:
        return variant.title.replace(" (", "\n(")
    added = " + ".join(PRETTY.get(part, part) for part in variant.method.split("+")[1:])
    return f"+ {added}" + (f"\n({variant.extra})" if variant.extra else "")


def _dense_line(axes: Axes, dense: float | None) -> None:
    if dense is None:
        return
    axes.axvline(dense, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
    _note(axes, f"dense {numbers.perplexity_text(dense)}", (dense, 1), (4, 6), xycoords=("data", "axes fraction"))


def _note(axes: Axes, words: str, place: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """Words beside a place in the drawing."""
    axes.annotate(words, place, xytext=offset, textcoords="offset points", fontsize=11, **options)


def _curve(axes: Axes, line: Sequence[tuple[float, Any]], variant: Variant, colour: str, marker: str) -> None:
    xs, means, sds = [x for x, _ in line], [s.mean for _, s in line], [s.sd or 0.0 for _, s in line]
    face = colour if variant.rebuilt else PAPER
    style = "-" if variant.rebuilt else (0, (1, 1))
    axes.errorbar(
        xs,
        means,
        yerr=sds if any(sds) else None,
        color=colour,
        linestyle=style,
        linewidth=1.8,
        marker=marker,
        markersize=6,
        markerfacecolor=face,
        capsize=3,
        label=variant.title,
    )


def plain_ticks(axes: Axes, log: bool, vertical: bool = False) -> None:
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
