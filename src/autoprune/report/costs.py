"""What pruning took: time and memory as a table, and perplexity against time as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report import numbers
from autoprune.report.grid import Grid
from autoprune.report.plots import (
    LOG_FROM,
    WIDTH,
    family_colours,
    legend_columns,
    legend_height,
    marker_of,
    plain_ticks,
)
from autoprune.report.svg import MUTED, PAPER, Drawing, canvas, finish
from autoprune.report.views import Spread, Text, Variant, is_dense, prune_seconds, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEBIBYTE = 2**20
Point = tuple[Variant, Spread, Spread]  # variant, seconds, perplexity


def cost_grid(variants: Sequence[Variant]) -> Grid:
    """Seconds of the pruning and of the whole run, and peak memory; a column is left out where nothing was
    measured.
    """
    seconds = [seconds_of(v) for v in variants]
    whole = [spread([row.cost.seconds for row in v.rows if row.cost]) for v in variants]
    memory = [_most([row.cost.peak_bytes for row in v.rows if row.cost]) for v in variants]
    device = [_most([row.cost.device_bytes for row in v.rows if row.cost]) for v in variants]
    columns = [
        ("pruning, s", [_seconds_text(s) for s in seconds]),
        ("whole run, s", [_seconds_text(s) for s in whole]),
        ("peak memory, MiB", [_mebibytes(m) for m in memory]),
        ("on the device, MiB", [_mebibytes(m) for m in device]),
    ]
    columns = [(head, cells) for head, cells in columns if any(cell != "-" for cell in cells)]
    lines = (
        [(v.name, v.target, *(cells[i] for _, cells in columns)) for i, v in enumerate(variants)] if columns else []
    )
    breaks = frozenset(i for i in range(len(lines) - 1) if variants[i].target != variants[i + 1].target)
    return Grid(
        ("method", "target", *(head for head, _ in columns)), tuple(lines), breaks=breaks, title="What it took"
    )


def pareto(variants: Sequence[Variant], text: Text) -> list[Drawing]:
    """Perplexity against the seconds that pruning took, one drawing per target; a line joins what nothing beats in
    both.
    """
    known: list[Point] = []
    for variant in variants:
        seconds, value = seconds_of(variant), variant.perplexity(text)
        if (
            not is_dense(variant.rows[0])
            and seconds
            and value
            and math.isfinite(value.mean)
            and value.mean > 0
            and seconds.mean > 0
        ):
            known.append((variant, seconds, value))
    dense = next(
        (s.mean for v in variants if is_dense(v.rows[0]) and (s := v.perplexity(text)) and math.isfinite(s.mean)), None
    )
    targets = {
        target: [p for p in known if p[0].target == target] for target in dict.fromkeys(p[0].target for p in known)
    }
    colours = family_colours(variants)
    return [_pareto(points, text, target, dense, colours) for target, points in targets.items() if len(points) > 1]


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates (lower is better), from left to right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def seconds_of(variant: Variant) -> Spread | None:
    """Seconds of the pruning over the seeds."""
    return spread([s for row in variant.rows if (s := prune_seconds(row)) is not None])


def _pareto(points: Sequence[Point], text: Text, target: str, dense: float | None, colours: dict[str, str]) -> Drawing:
    xs, ys = [s.mean for _, s, _ in points], [p.mean for _, _, p in points] + ([dense] if dense else [])
    names = [variant.title for variant, _, _ in points]
    with canvas(WIDTH, 260 + legend_height(names)) as figure:
        axes = figure.add_subplot()
        log_x, log_y = max(xs) / min(xs) > LOG_FROM, max(ys) / min(ys) > LOG_FROM
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        axes.set(xlabel="seconds to prune" + (", log scale" if log_x else ""), ylabel=f"perplexity on {text.label}")
        axes.grid(axis="y")
        line = frontier([(s.mean, p.mean) for _, s, p in points])
        axes.plot(*zip(*line, strict=True), color=MUTED, linewidth=1.2, drawstyle="steps-post", zorder=1)
        for point in points:
            _dot(axes, point, colours, marker_of(point[0], [variant for variant, _, _ in points]))
        if dense is not None:
            axes.axhline(dense, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="Dense")
        if not log_x:
            axes.set_xlim(0, 1.06 * max(s.mean + (s.sd or 0.0) for _, s, _ in points))
        axes.margins(y=0.12)
        plain_ticks(axes, log_x)
        plain_ticks(axes, log_y, vertical=True)
        figure.legend(loc="outside lower center", ncols=legend_columns(names))
        return finish(figure, f"Perplexity on {text.label} against time at {target}")


def _dot(axes: Axes, point: Point, colours: dict[str, str], marker: str) -> None:
    variant, seconds, value = point
    colour = colours[variant.family]
    look: dict[str, Any] = {
        "marker": marker,
        "markersize": 8,
        "markeredgewidth": 1.8,
        "markerfacecolor": colour if variant.rebuilt else PAPER,
    }
    axes.errorbar(
        seconds.mean,
        value.mean,
        xerr=seconds.sd,
        yerr=value.sd,
        color=colour,
        linestyle="none",
        linewidth=1.2,
        label=variant.title,
        zorder=3,
        **look,
    )


def _most(values: Sequence[int]) -> int:
    return max(values, default=0)


def _seconds_text(seconds: Spread | None) -> str:
    if seconds is None:
        return "-"
    digits = 2 if seconds.mean < 10 else 1 if seconds.mean < 100 else 0
    return f"{seconds.mean:.{digits}f}" + ("" if seconds.sd is None else f" ± {seconds.sd:.{digits}f}")


def _mebibytes(size: int) -> str:
    return (
        f"{numbers.perplexity_text(size / MEBIBYTE)}"
        if 0 < size < 10 * MEBIBYTE
        else f"{size / MEBIBYTE:,.0f}"
        if size
        else "-"
    )
