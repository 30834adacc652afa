"""What was measured, as tables: of a single run, and of many beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autoprune.results import numbers
from autoprune.results.table import Column, Table, to_text
from autoprune.results.tidy import (
    BITS,
    DEVICE,
    DIVERGENCE,
    PEAK,
    PERPLEXITY,
    PRUNE_SECONDS,
    SAME_TOP,
    SECONDS,
    SPARSITY,
    Results,
)
from autoprune.results.types import EvaluationRow
from autoprune.results.variants import Spread, Variant, seed_of, steps_of


def perplexity_log(rows: Sequence[EvaluationRow]) -> str:
    """The text of ``log_….txt``: method, target, actual sparsity, and each text with its window length."""
    results = Results(rows)
    seeds = [seed_of(row) for row in rows]
    columns = [Column("method", tuple(row.method for row in rows), words=True)]
    columns.append(Column("target", tuple(row.target for row in rows), words=True))
    if len({str(seed) for seed in seeds if seed is not None}) > 1:
        columns.append(Column("seed", tuple("-" if seed is None else str(seed) for seed in seeds)))
    columns.append(Column("actual sparsity", tuple(numbers.percent_text(row.sparsity) for row in rows)))
    for text in results.texts:
        found = [
            next((p.perplexity for p in row.perplexity if (p.source, p.seqlen) == (text.source, text.seqlen)), None)
            for row in rows
        ]
        columns.append(Column(text.label, tuple("-" if v is None else numbers.number_text(v) for v in found)))
    return to_text(Table(tuple(columns)))


def comparison(results: Results) -> Table:
    """A line for every variant: mean ± deviation over seeds on every text, changes, time to prune and peak memory.

    The lowest perplexity of each target is stressed, among variants with the same share of zeros.
    """
    variants = results.variants
    columns = [*_names(results), Column("sparsity", _sparsities(results), spare=6)]
    for i, text in enumerate(results.texts):
        spreads = [results.spread(v, PERPLEXITY, text.label) for v in variants]
        best = (results.best(group, text) for group in results.groups())
        strong = frozenset(variants.index(order[0]) for order in best if len(order) > 1)
        cells = numbers.column_texts(spreads)
        columns.append(Column(text.title, cells, strong=strong, spare=9 + i if i else 0, short=text.label))
    against_dense = [results.change(v, results.dense_of(v)) for v in variants]
    if any(against_dense):
        columns.append(Column("vs dense", tuple(map(numbers.change_text, against_dense)), spare=2))
    by_step = [results.change(v, results.before(v)) for v in variants]
    if any(by_step):
        last = {steps_of(v.method)[-1] for v, change in zip(variants, by_step, strict=True) if change}
        head = f"change by {last.pop() if len(last) == 1 else 'last step'}"
        columns.append(Column(head, tuple(map(numbers.change_text, by_step)), spare=5))
    for i, text in enumerate(results.texts):
        for metric, look, spare in ((DIVERGENCE, numbers.nats_texts, 4), (SAME_TOP, _percents, 7)):
            spreads = [results.spread(v, metric, text.label) for v in variants]
            columns.append(Column(f"{metric}, {text.label}", look(spreads), spare=spare + 5 * bool(i), short=metric))
    columns.append(Column("pruning, s", seconds(results, PRUNE_SECONDS), spare=3))
    columns.append(Column("peak memory, MiB", _most(results, PEAK), spare=8, short="peak MiB"))
    stressed = any(column.strong for column in columns)
    note = "Bold: the lowest of each target, among equal shares of zeros." if stressed else ""
    table = Table(tuple(columns), target_breaks(variants), "Perplexity, lower is better", with_seeds(note, results))
    return table.without_empty()


def cost_table(results: Results) -> Table:
    """Seconds of the pruning and of the whole run, peak memory; only what was measured."""
    columns = (
        *_names(results),
        Column("pruning, s", seconds(results, PRUNE_SECONDS)),
        Column("whole run, s", seconds(results, SECONDS)),
        Column("peak memory, MiB", _most(results, PEAK)),
        Column("on the device, MiB", _most(results, DEVICE)),
    )
    return Table(columns, target_breaks(results.variants), "What it took").without_empty()


def metric_table(results: Results, metric: str, title: str) -> Table:
    """Any metric of every variant that has it, a column for each text that it was measured on."""
    texts = [t.label for t in results.texts if any(results.spread(v, metric, t.label) for v in results.variants)]
    shown = [i for i, v in enumerate(results.variants) if any(results.spread(v, metric, text) for text in texts)]
    columns = [_cut(column, shown) for column in _names(results)]
    for text in texts:
        columns.append(
            Column(text, numbers.column_texts([results.spread(results.variants[i], metric, text) for i in shown]))
        )
    return Table(tuple(columns), target_breaks([results.variants[i] for i in shown]), title)


def bits_table(results: Results) -> Table:
    """Bits per byte of every variant on every text, as far as they are known."""
    return metric_table(results, BITS, "Bits per byte, lower is better")


def with_seeds(note: str, results: Results) -> str:
    """A note, and what ± says where there are several seeds."""
    spread = f"± is the standard deviation over {results.seeds} seeds." if results.seeds > 1 else ""
    return " ".join(filter(None, (note, spread)))


def leaders(
    results: Results, variants: Sequence[Variant], values: Sequence[float | None], *, lowest: bool = True
) -> frozenset[int]:
    """Lines with the best value of each group of variants that may be compared, where several have one."""
    found: set[int] = set()
    for group in results.groups():
        mine = {
            i: value
            for i, (variant, value) in enumerate(zip(variants, values, strict=True))
            if variant in group and value is not None and math.isfinite(value)
        }
        best = (min if lowest else max)(mine.values(), default=None)
        found |= {i for i, value in mine.items() if value == best} if len(mine) > 1 else set()
    return frozenset(found)


def names_of(variants: Sequence[Variant], *, models: bool) -> list[Column]:
    """The columns that say which variant a line is of."""
    model = [Column("model", tuple(v.model for v in variants), words=True, spare=1)] if models else []
    name, target = (tuple(getattr(v, what) for v in variants) for what in ("name", "target"))
    return [*model, Column("method", name, words=True), Column("target", target, words=True)]


def target_breaks(variants: Sequence[Variant]) -> frozenset[int]:
    """Lines after which another target begins."""
    keys = [(v.model, v.target) for v in variants]
    return frozenset(i for i in range(len(keys) - 1) if keys[i] != keys[i + 1])


def seconds(results: Results, metric: str) -> tuple[str, ...]:
    """A column of seconds."""
    return numbers.seconds_texts([results.spread(v, metric) for v in results.variants])


def _names(results: Results) -> list[Column]:
    return names_of(results.variants, models=len(results.models) > 1)


def _sparsities(results: Results) -> tuple[str, ...]:
    spreads = [results.spread(v, SPARSITY) for v in results.variants]
    return tuple(numbers.percent_text(s.mean) if s else "-" for s in spreads)


def _most(results: Results, metric: str) -> tuple[str, ...]:
    """The largest over the seeds, of bytes."""
    return tuple(
        numbers.mebibytes_text(max(results.by_seed(v, metric).values(), default=None)) for v in results.variants
    )


def _percents(spreads: Sequence[Spread | None]) -> tuple[str, ...]:
    return tuple(map(numbers.percent_spread_text, spreads))


def _cut(column: Column, lines: Iterable[int]) -> Column:
    return Column(column.head, tuple(column.cells[i] for i in lines), column.words)
