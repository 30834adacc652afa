"""Pictures of perplexity, cost and layer error. All drawings have one width, and the page sets them side by side.

Bars begin at zero and are never on a logarithmic axis: where values lie too far apart for bars, dots stand instead.
Pictures of one kind have the same axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report.axes import (
    LOG_FROM,
    WIDTH,
    axis_words,
    colours_of,
    legend,
    legend_height,
    look_of,
    note,
    ticks,
    whole_ticks,
)
from autoprune.report.draw import HEAT, INK, LINES, MUTED, ON_HEAT, PAPER, Drawing, canvas, finish
from autoprune.results import numbers
from autoprune.results.tidy import PERPLEXITY, PRUNE_SECONDS, SPARSITY, Results
from autoprune.results.variants import Spread, Text, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELLED = 8  # blocks: so many tiles have room for their number
DASHES = (0, (4, 3))
Point = tuple[Spread, Spread, Variant]  # along x, along y, and whose it is
Lines = dict[str, list[Point]]  # by name


def bars(results: Results, text: Text) -> list[Drawing]:
    """Perplexity of every variant, one drawing per target, all on the same axis; the dense model is a dashed line."""
    known = [(v, s) for v in results.variants if not v.dense and (s := results.spread(v, PERPLEXITY, text.label))]
    dense = _dense(results, text)
    values = [s.mean for _, s in known if s.finite] + ([dense] if dense else [])
    if not known or not values:
        return []
    low, high = min(values), max(values)
    log = low > 0 and high / low > LOG_FROM
    limits = (low / (high / low) ** 0.05, high * (high / low) ** 0.45) if log else (0.0, 1.36 * high or 1.0)
    colours, drawings = colours_of(results), []
    *shown, dense_text = numbers.column_texts([*(s for _, s in known), Spread(dense) if dense else None])
    texts = dict(zip((v for v, _ in known), shown, strict=True))
    for target in dict.fromkeys(v.target for v, _ in known):
        group = [(v, s) for v, s in known if v.target == target]
        with canvas(WIDTH, 74 + 42 * len(group)) as figure:
            axes = figure.add_subplot()
            axes.set(xlim=limits, ylim=(len(group) - 0.4, -0.75), xscale="log" if log else "linear")
            axes.set(xlabel=axis_words(f"perplexity on {text.label}", log))
            for i, (variant, spread) in enumerate(group):
                _bar(axes, i, variant, spread, texts[variant], colours, limits[0], dots=log)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            if dense:
                lows, highs = ([i + end for i in range(len(group))] for end in (-0.26, 0.3))  # not through the names
                axes.vlines([dense] * len(group), lows, highs, color=INK, linestyle=(0, (3, 2)), linewidth=1.3)
                note(axes, f"dense {dense_text}", (dense, 1), (4, 5), xycoords=("data", "axes fraction"))
            ticks(axes, log)
            drawings.append(finish(figure, f"Perplexity on {text.label} at {target}"))
    return drawings


def curves(results: Results, text: Text) -> list[Drawing]:
    """Perplexity against actual sparsity with error bars over seeds; nothing unless two levels were pruned."""
    lines: Lines = {}
    for v in results.variants:
        share, value = results.spread(v, SPARSITY), results.spread(v, PERPLEXITY, text.label)
        if not v.dense and ":" not in v.target and share and value and value.finite and value.mean > 0:
            lines.setdefault(v.name, []).append((Spread(100 * share.mean), value, v))
    levels = {round(share.mean) for line in lines.values() for share, _, _ in line}
    return [_plane(results, text, lines, "sparsity, %", "against sparsity")] if len(levels) > 1 else []


def pareto(results: Results, text: Text) -> list[Drawing]:
    """Perplexity against the seconds that pruning took, a drawing per target, all on the same axes; a line joins what
    nothing beats.
    """
    by_target: dict[str, Lines] = {}
    for v in (v for v in results.variants if not v.dense):
        took, value = results.spread(v, PRUNE_SECONDS), results.spread(v, PERPLEXITY, text.label)
        if took and took.mean > 0 and value and value.finite and value.mean > 0:
            by_target.setdefault(v.target, {})[v.name] = [(took, value, v)]
    shown = {target: points for target, points in by_target.items() if len(points) > 1}
    reach = [point for points in shown.values() for line in points.values() for point in line]
    words = "seconds to prune", "against time at"
    return [
        _plane(results, text, points, words[0], f"{words[1]} {target}", reach=reach)
        for target, points in shown.items()
    ]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates (lower is better), from left to right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def error_lines(results: Results) -> list[Drawing]:
    """Mean relative output error of the layers of each block, a line for every variant, a drawing per target."""
    lines = {v: errors for v in results.variants if v.summary and (errors := _block_errors(v))}
    found = {target: [v for v in lines if v.target == target] for target in dict.fromkeys(v.target for v in lines)}
    values = [e for line in lines.values() for _, e in line if e > 0]
    if not values or max(len(line) for line in lines.values()) < 2:
        return []
    log, colours, drawings = max(values) / min(values) > LOG_FROM, colours_of(results), []
    for target, group in found.items():
        with canvas(WIDTH, 230 + legend_height([v.name for v in group])) as figure:
            axes = figure.add_subplot()
            axes.set(xlabel="block", ylabel=axis_words("relative error", log), yscale="log" if log else "linear")
            axes.grid(axis="y", color=LINES)
            for variant in group:
                look = look_of(variant, group, colours)
                axes.plot(*zip(*lines[variant], strict=True), linewidth=1.6, label=variant.name, **look)
            axes.set_ylim(*((min(values) / 1.3, max(values) * 1.3) if log else (0.0, 1.08 * max(values))))
            whole_ticks(axes)
            ticks(axes, log, vertical=True)
            legend(figure, [v.name for v in group])
            drawings.append(finish(figure, f"Mean layer error by block at {target}"))
    return drawings


def heat_map(title: str, cells: dict[tuple[str, int], float], form: str) -> Drawing:
    """Rows are layers, columns blocks; the colours span what occurs."""
    from matplotlib.patches import Patch, Rectangle

    names, blocks = list(dict.fromkeys(n for n, _ in cells)), sorted({b for _, b in cells})
    low, high = min(cells.values()), max(cells.values())
    short = len({name.rpartition(".")[2] for name in names}) == len(names)
    labelled = len(blocks) <= LABELLED
    with canvas(WIDTH, 60 + (0 if labelled else 26) + 24 * len(names)) as figure:
        axes = figure.add_subplot()
        for (name, block), value in cells.items():
            x, y, shade = blocks.index(block), names.index(name), _shade(value, low, high)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=HEAT[shade], edgecolor=PAPER, linewidth=0.6))
            if labelled:
                look: dict[str, Any] = {
                    "ha": "center",
                    "va": "center_baseline",
                    "fontsize": 10,
                    "color": ON_HEAT[shade],
                }
                axes.text(x, y, form.format(value), **look)
        axes.set(xlim=(-0.5, len(blocks) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="block")
        axes.set_yticks(range(len(names)), [name.rpartition(".")[2] if short else name for name in names])
        step = math.ceil(len(blocks) / 12)
        axes.set_xticks(range(0, len(blocks), step), [str(b) for b in blocks[::step]])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if not labelled:
            ends = [low + (high - low) * i / 4 for i in range(5)]
            keys = [Patch(facecolor=HEAT[_shade(v, low, high)], label=form.format(v)) for v in ends]
            figure.legend(handles=keys, loc="outside lower center", ncols=5, handlelength=1.2, columnspacing=0.9)
        return finish(figure, title)


def _plane(
    results: Results,
    text: Text,
    lines: Lines,
    xlabel: str,
    title: str,
    *,
    reach: Sequence[Point] = (),
) -> Drawing:
    """Perplexity against something: a line for each name; or, where ``reach`` has the points of all drawings that are
    to have the same axes, points and the line of what is best.
    """
    points, joined = [point for line in lines.values() for point in line], not reach
    dense, colours, drawn = _dense(results, text), colours_of(results), [v for _, _, v in points]
    xs = [end for x, _, _ in reach or points for end in _ends(x)]
    ys = [*(end for _, y, _ in reach or points for end in _ends(y)), *([dense] if dense else [])]
    log_x, log_y = not joined and max(xs) / min(xs) > LOG_FROM, max(ys) / min(ys) > LOG_FROM
    with canvas(WIDTH, 250 + legend_height([*lines, "dense"])) as figure:
        axes = figure.add_subplot()
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        axes.set(xlabel=axis_words(xlabel, log_x), ylabel=axis_words(f"perplexity on {text.label}", log_y))
        axes.grid(axis="y")
        if not joined:
            best = frontier([(x.mean, y.mean) for x, y, _ in points])
            axes.plot(*zip(*best, strict=True), color=MUTED, linewidth=1.2, drawstyle="steps-post", zorder=1)
        for name, line in lines.items():
            line.sort(key=lambda point: point[0].mean)
            look = look_of(line[0][2], drawn, colours) | ({} if joined else {"linestyle": "none"})
            for key, i in (("xerr", 0), ("yerr", 1)):
                sds = [(point[0], point[1])[i].sd or 0.0 for point in line]
                look |= {key: sds} if any(sds) else {}
            x, y = [x.mean for x, _, _ in line], [y.mean for _, y, _ in line]
            axes.errorbar(x, y, linewidth=1.5, capsize=2.5, label=name, zorder=3, **look)
        if dense:
            axes.axhline(dense, color=MUTED, linestyle=DASHES, linewidth=1.2, label="dense")
        if not joined:
            axes.set_xlim(*(_room(xs, log_x) if log_x else (0.0, 1.06 * max(xs))))
        axes.set_ylim(*_room(ys, log_y))
        ticks(axes, log_x)
        ticks(axes, log_y, vertical=True)
        legend(figure, [*lines, "dense"])
        return finish(figure, f"Perplexity on {text.label} {title}")


def _ends(spread: Spread) -> tuple[float, ...]:
    """What a point with its whiskers reaches; on a logarithmic axis no whisker goes below zero."""
    sd = spread.sd or 0.0
    return tuple(end for end in (spread.mean - sd, spread.mean, spread.mean + sd) if end > 0)


def _room(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Limits that leave an eighth of room at both ends."""
    low, high = min(values), max(values)
    if log:
        return low / (high / low) ** 0.12, high * (high / low) ** 0.12
    room = 0.12 * (high - low) or 0.1 * high
    return low - room, high + room


def _bar(
    axes: Axes,
    line: int,
    variant: Variant,
    spread: Spread,
    text: str,
    colours: dict[str, str],
    start: float,
    *,
    dots: bool,
) -> None:
    """A bar from zero, or a dot, with the variant's name above and its value behind; faint before the last step."""
    colour, value = colours[variant.family], spread.mean if spread.finite else start
    if dots and spread.finite:
        axes.plot(value, line, "o", color=colour, markerfacecolor=colour if variant.refined else PAPER, markersize=9)
    elif spread.finite:
        axes.barh(line, value, height=0.44, color=colour, alpha=1.0 if variant.refined else 0.5)
    if spread.finite and spread.sd:
        axes.errorbar(value, line, xerr=spread.sd, color=INK, linewidth=1.2, capsize=3)
    reach = value + (spread.sd or 0.0) if spread.finite else start
    note(axes, text, (reach, line), (8 if dots else 5, 0), va="center")
    note(axes, variant.name, (start, line - 0.27), (1, 0), va="bottom")


def _block_errors(variant: Variant) -> list[tuple[int, float]]:
    """Block and mean relative error of its layers, where any was measured."""
    errors: dict[int, list[float]] = {}
    for layer in variant.summary.layers if variant.summary else ():
        if layer.error is not None and math.isfinite(layer.error):
            errors.setdefault(layer.block, []).append(layer.error)
    return [(block, sum(found) / len(found)) for block, found in errors.items()]


def _dense(results: Results, text: Text) -> float | None:
    found = (results.spread(v, PERPLEXITY, text.label) for v in results.variants if v.dense)
    return next((s.mean for s in found if s and s.finite and s.mean > 0), None)


def _shade(value: float, low: float, high: float) -> int:
    """Which of the heat's colours stands for a value; the last for what is no number."""
    reach = (value - low) / (high - low) if high > low else 0.0
    return min(int(len(HEAT) * reach), len(HEAT) - 1) if math.isfinite(reach) else len(HEAT) - 1
