"""How far predictions are from the dense model's: table, distribution, and loss by place in the window; flips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autoprune.core.shift import PredictionShift
from autoprune.report.axes import WIDTH, colours_of, legend, legend_height, look_of, note, ticks
from autoprune.report.draw import INK, LINES, MUTED, Drawing, canvas, finish
from autoprune.report.tables import leaders, names_of, target_breaks, with_seeds
from autoprune.results import numbers
from autoprune.results.comparison import Flips, flips_between
from autoprune.results.comparison_tables import MCNEMAR
from autoprune.results.table import Column, Table
from autoprune.results.tidy import DELTA_P, DIVERGENCE, DIVERGENCE_50, DIVERGENCE_99, LOG_RATIO, SAME_TOP, Results
from autoprune.results.types import TaskResult
from autoprune.results.variants import Text, Variant

ROW, PEAK = 46, 0.56  # SVG units of one distribution, and how much of them its highest bar takes


def distance_table(results: Results) -> Table:
    """A line for every variant and text: mean ± deviation over seeds."""
    lines = [
        (variant, text)
        for variant in results.variants
        for text in results.texts
        if results.spread(variant, DIVERGENCE, text.label)
    ]
    variants = [variant for variant, _ in lines]

    def column(head: str, metric: str, *, percent: bool = False, lowest: bool = True) -> Column:
        found = [results.spread(variant, metric, text.label) for variant, text in lines]
        strong = frozenset[int]()
        for text in results.texts:
            here = [abs(s.mean) if s and own is text else None for s, (_, own) in zip(found, lines, strict=True)]
            strong |= leaders(results, variants, here, lowest=lowest)
        cells = map(numbers.percent_spread_text, found) if percent else numbers.nats_texts(found)
        return Column(head, tuple(cells), strong=strong)

    columns = (
        *names_of(variants, models=len(results.models) > 1),
        Column("text", tuple(text.label for _, text in lines), words=True),
        column("KL divergence, nats", DIVERGENCE),
        column("median", DIVERGENCE_50),
        column("99 %", DIVERGENCE_99),
        column("same top", SAME_TOP, percent=True, lowest=False),
        column("Δp rms", DELTA_P, percent=True),
        column("ln(ppl ratio)", LOG_RATIO),
    )
    stressed = any(one.strong for one in columns)
    note = with_seeds("Bold: the nearest of each target, among equal shares of zeros." if stressed else "", results)
    return Table(columns, target_breaks(variants), "Distance from the dense model", note)


def flips_table(results: Results) -> Table:
    """Answers of every variant that are not the dense model's, task by task; of several seeds the first that has
    them.
    """
    found = [(variant, flip) for variant in results.variants for flip in _flips(results, variant)]
    variants, flips = [variant for variant, _ in found], [flip for _, flip in found]
    columns = (
        *names_of(variants, models=len(results.models) > 1),
        Column("task", tuple(flip.task for flip in flips), words=True),
        Column("metric", tuple(flip.metric for flip in flips), words=True),
        Column("items", tuple(str(flip.items) for flip in flips)),
        Column("changed", tuple(numbers.percent_text(flip.share_changed) for flip in flips)),
        Column("correct → wrong", tuple(numbers.percent_text(f.correct_to_wrong / f.items) for f in flips)),
        Column("wrong → correct", tuple(numbers.percent_text(f.wrong_to_correct / f.items) for f in flips)),
        Column("McNemar's p", tuple(f"{flip.p_value:.3g}" for flip in flips)),
    )
    note = MCNEMAR + " Of several seeds the first." * (results.seeds > 1)
    return Table(columns, target_breaks(variants), "Answers that are not the dense model's", note)


def distributions(results: Results, text: Text) -> list[Drawing]:
    """The divergence of all scored tokens, a row for every variant and a drawing for every target, on one axis; what
    stands out is the median. Tokens of several seeds are counted together.
    """
    known = {v: found for v in results.variants if (found := _shifts(v, text))}
    bars = [bar for found in known.values() for shift in found for bar in shift.bars]
    if not bars:
        return []
    low, high = min(bar.high for bar in bars) / 2, max(bar.high for bar in bars)
    colours, drawings = colours_of(results), []
    for target in dict.fromkeys(v.target for v in known):
        group = [v for v in known if v.target == target]
        with canvas(WIDTH, 62 + ROW * len(group)) as figure:
            axes = figure.add_subplot()
            axes.set(xscale="log", xlim=(low, high * 1.2), ylim=(len(group) - 0.95, -0.95))
            axes.set(xlabel="KL divergence of a token, nats, log scale", yticks=[])
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color=LINES)
            for line, variant in enumerate(group):
                edges, shares = _outline(known[variant], low)
                top = [line - PEAK * share / max(shares) for share in shares]
                look: dict[str, Any] = {"color": colours[variant.family], "alpha": 1.0 if variant.refined else 0.55}
                axes.fill_between(edges, line, [*top, top[-1]], step="post", linewidth=0, **look)
                middle = results.spread(variant, DIVERGENCE_50, text.label)
                axes.vlines(max(middle.mean, low) if middle else low, line - PEAK, line, color=INK, linewidth=1.3)
                note(axes, variant.name, (low, line - 0.66), (2, 0), in_layout=False)
            ticks(axes, True)
            drawings.append(finish(figure, f"Divergence of single tokens of {text.label}{_at(target)}"))
    return drawings


def places(results: Results, text: Text) -> list[Drawing]:
    """Loss above the dense model's by place in the window, mean over seeds, a drawing for every target."""
    known = {v: found for v in results.variants if (found := _shifts(v, text)) and len(found[0].stretches) > 1}
    lines = {v: list(_by_place(found)) for v, found in known.items()}
    reach = [y for line in lines.values() for _, y in line]
    colours, drawings = colours_of(results), []
    for target in dict.fromkeys(v.target for v in known):
        group = [v for v in known if v.target == target]
        with canvas(WIDTH, 230 + legend_height([v.name for v in group])) as figure:
            axes = figure.add_subplot()
            axes.set(xlabel=f"place in the window of {text.seqlen} tokens", ylabel="loss above dense, nats")
            axes.grid(axis="y", color=LINES)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            for variant in group:
                look = look_of(variant, group, colours)
                axes.plot(*zip(*lines[variant], strict=True), linewidth=1.6, label=variant.name, **look)
            axes.set_ylim(min(0.0, 1.08 * min(reach)), max(0.0, 1.08 * max(reach)) or 1.0)
            ticks(axes, False)
            ticks(axes, False, vertical=True)
            legend(figure, [v.name for v in group])
            drawings.append(finish(figure, f"Loss by place in the window, {text.label}{_at(target)}"))
    return drawings


def _at(target: str) -> str:
    return f" at {target}" if target else ""


def _shifts(variant: Variant, text: Text) -> list[PredictionShift]:
    return [s for row in variant.rows if (s := row.shifts.get(text.source)) and s.seqlen == text.seqlen]


def _outline(shifts: Sequence[PredictionShift], low: float) -> tuple[list[float], list[int]]:
    """Edges of the bars on a logarithmic axis, one more than bars, and the tokens of each."""
    counts: dict[tuple[float, float], int] = {}
    for bar in (bar for shift in shifts for bar in shift.bars):
        counts[bar.low, bar.high] = counts.get((bar.low, bar.high), 0) + bar.tokens
    bars = sorted(counts)
    return [max(bars[0][0], low), *(high for _, high in bars)], [counts[bar] for bar in bars]


def _by_place(shifts: Sequence[PredictionShift]) -> Iterator[tuple[float, float]]:
    """The middle of every stretch, and its loss above the dense model's."""
    for same in zip(*(shift.stretches for shift in shifts), strict=True):
        above = [stretch.pruned_loss - stretch.dense_loss for stretch in same]
        yield (same[0].start + same[0].stop - 1) / 2, sum(above) / len(above)


def _flips(results: Results, variant: Variant) -> Iterator[Flips]:
    """Against the dense model among the rows, where both say which answers they took on as many items."""
    dense = results.dense_of(variant)
    if dense is None or dense is variant:
        return
    ours, theirs = _answered(dense), _answered(variant)
    for task in (task for task in ours if task in theirs):
        yield from flips_between(ours[task], theirs[task])


def _answered(variant: Variant) -> dict[str, TaskResult]:
    """By task: the first run's answers."""
    found: dict[str, TaskResult] = {}
    for row in variant.rows:
        for task in row.zeroshot.tasks if row.zeroshot else ():
            if task.chosen:
                found.setdefault(task.task, task)
    return found
