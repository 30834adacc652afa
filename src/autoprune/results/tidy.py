"""One tidy table of all that was measured; terminal tables, CSV, the page and the pictures are drawn from it.

A line is one run × one metric × one text or task. Runs that differ only by their seed are one variant.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from autoprune.results.comparison import flips_between
from autoprune.results.types import EvaluationRow
from autoprune.results.variants import Spread, Text, Variant, model_of, seed_of, spread, texts_of, variants_of

if TYPE_CHECKING:
    from pandas import DataFrame

KEYS = ("model", "method", "settings", "target", "seed")
PERPLEXITY, BITS, SPARSITY = "perplexity", "bits per byte", "sparsity"
DIVERGENCE, DIVERGENCE_50, DIVERGENCE_99 = "KL divergence", "KL divergence median", "KL divergence 99 %"
SAME_TOP, DELTA_P, LOG_RATIO = "same top", "Δp rms", "ln(ppl ratio)"
PRUNE_SECONDS, SECONDS, PEAK, DEVICE = "prune_seconds", "seconds", "peak_bytes", "device_bytes"
SAME_SPARSITY = 0.005  # shares of zeros that differ by less are called equal


class Results:
    """Rows as a tidy table, and the questions that tables and pictures ask of it."""

    def __init__(self, rows: Sequence[EvaluationRow]) -> None:
        self.rows = tuple(rows)
        self.texts = texts_of(rows)
        self.variants = variants_of(rows)
        self._variant_of = {id(row): variant for variant in self.variants for row in variant.rows}
        self.table = self._tidy()
        grouped = self.table.groupby(["variant", "metric", "on"], sort=False)
        self._spreads = {key: spread(values.tolist()) for key, values in grouped["value"]}
        self._by_seed = {
            key: dict(zip(group["seed"], group["value"], strict=True)) for key, group in grouped[["seed", "value"]]
        }

    @property
    def models(self) -> list[str]:
        """The models, in order of first appearance."""
        return list(dict.fromkeys(variant.model for variant in self.variants))

    @property
    def seeds(self) -> int:
        """The most seeds that a variant has."""
        return max((len(variant.rows) for variant in self.variants), default=0)

    def of_model(self, model: str) -> Results:
        """The results of one model."""
        return Results([row for row in self.rows if model_of(row) == model])

    def spread(self, variant: Variant, metric: str, on: str = "") -> Spread | None:
        """Mean and deviation of a metric over the seeds; None where it was not measured."""
        return self._spreads.get((self.variants.index(variant), metric, on))

    def by_seed(self, variant: Variant, metric: str, on: str = "") -> dict[Any, float]:
        """A metric of every seed."""
        return self._by_seed.get((self.variants.index(variant), metric, on), {})

    def dense_of(self, variant: Variant) -> Variant | None:
        """The dense model that a variant was pruned from; None if it is not among them, or not alone."""
        found = [v for v in self.variants if v.dense and v.model == variant.model]
        return found[0] if len(found) == 1 else None

    def before(self, variant: Variant) -> Variant | None:
        """The same without the last step; None if it is not among them, or not alone."""
        wanted = (variant.model, variant.target, variant.method.rpartition("+")[0])
        found = [v for v in self.variants if (v.model, v.target, v.method) == wanted] if variant.refined else []
        return found[0] if len(found) == 1 else None

    def change(self, variant: Variant, base: Variant | None) -> Spread | None:
        """Perplexity over the base's, seed by seed, geometric mean over the texts; None where there is none.

        A base of one run, such as the dense model, is every seed's.
        """
        if base is None or base is variant:
            return None
        ratios = []
        for seed in dict.fromkeys(seed_of(row) for row in variant.rows):
            pairs = []
            for text in self.texts:
                mine, theirs = (self.by_seed(v, PERPLEXITY, text.label) for v in (variant, base))
                common = theirs.get(seed) if len(theirs) != 1 or not base.dense else next(iter(theirs.values()))
                if seed in mine and common:
                    pairs.append(mine[seed] / common)
            if pairs and all(math.isfinite(r) and r > 0 for r in pairs):
                ratios.append(math.exp(statistics.fmean(map(math.log, pairs))))
        return spread(ratios)

    def groups(self) -> list[list[Variant]]:
        """Pruned variants that may be compared: of one model and one target, with the same share of zeros.

        The last is that of most variants of a target; others are left out of its group.
        """
        groups = []
        for key in dict.fromkeys((v.model, v.target) for v in self.variants if not v.dense):
            group = [v for v in self.variants if (v.model, v.target) == key and not v.dense]
            shares = [statistics.fmean(row.sparsity for row in v.rows) for v in group]
            usual = statistics.median_low(shares)
            groups.append([v for v, s in zip(group, shares, strict=True) if abs(s - usual) < SAME_SPARSITY])
        return groups

    def best(self, group: Sequence[Variant], text: Text) -> list[Variant]:
        """The group in order of mean perplexity on a text, without what was not measured or is no number."""
        spreads = [self.spread(v, PERPLEXITY, text.label) for v in group]
        return [group[i] for _, i in sorted((s.mean, i) for i, s in enumerate(spreads) if s and s.finite)]

    def wide(self) -> DataFrame:
        """One line a run: what it was, each text's perplexity, each task's accuracies with their errors, its cost."""
        table = self.table
        column = [_heading(metric, on) for metric, on in zip(table["metric"], table["on"], strict=True)]
        named = table.assign(column=column)
        values = named.pivot(index="run", columns="column", values="value")
        errors = named.dropna(subset="error").pivot(index="run", columns="column", values="error")
        keys = named.drop_duplicates("run").set_index("run")[list(KEYS)]
        order = [name for c in dict.fromkeys(column) for name in (c, f"{c} stderr")]
        last = ["", PRUNE_SECONDS, SECONDS, PEAK, DEVICE]
        order.sort(key=lambda name: last.index(name) if name in last else 0)
        whole = keys.join(values).join(errors.add_suffix(" stderr"))
        whole = whole[[*KEYS, *(name for name in order if name in whole)]].reset_index(drop=True)
        return whole.astype({name: "Int64" for name in (PEAK, DEVICE) if name in whole})

    def _tidy(self) -> DataFrame:
        from pandas import DataFrame

        labels = {(text.source, text.seqlen): text.label for text in self.texts}
        lines = []
        for run, row in enumerate(self.rows):
            variant = self._variant_of[id(row)]
            key = (run, self.variants.index(variant), variant.model, row.method, variant.settings, row.target)
            lines += [(*key, seed_of(row), *measured) for measured in _measurements(row, labels)]
            lines += [(*key, seed_of(row), *measured) for measured in self._changes(variant, row)]
        columns = ["run", "variant", *KEYS, "metric", "on", "value", "error"]
        kinds = {"run": int, "variant": int, "value": float, "error": float}
        return DataFrame(lines, columns=columns, dtype=object).astype(kinds)

    def _changes(self, variant: Variant, row: EvaluationRow) -> Iterator[tuple[str, str, float, None]]:
        """The share of answers that are not the dense model's, by task and accuracy."""
        dense = self.dense_of(variant)
        known = dense.rows[0].zeroshot if dense and dense is not variant else None
        before = {task.task: task for task in known.tasks} if known else {}
        for task in row.zeroshot.tasks if row.zeroshot else ():
            for flip in flips_between(before[task.task], task) if task.task in before else ():
                yield changed(flip.metric), task.task, flip.share_changed, None


def changed(metric: str) -> str:
    """The metric that says how many answers, judged by an accuracy, are not the dense model's."""
    return f"{metric} changed"


def _measurements(row: EvaluationRow, labels: dict[tuple[str, int], str]) -> Iterator[tuple[str, str, float, Any]]:
    """Metric, what it was measured on, its value and standard error (or None)."""
    if not math.isnan(row.sparsity):
        yield SPARSITY, "", row.sparsity, None
    for p in row.perplexity:
        yield PERPLEXITY, labels[p.source, p.seqlen], p.perplexity, None
    for p in row.perplexity:
        if p.bits_per_byte is not None:
            yield BITS, labels[p.source, p.seqlen], p.bits_per_byte, None
    for source, shift in row.shifts.items():
        label = labels[source, shift.seqlen]
        yield DIVERGENCE, label, shift.kld.mean, shift.kld.error
        yield DIVERGENCE_50, label, shift.kld_spread.median, None
        yield DIVERGENCE_99, label, shift.kld_spread.p99, None
        yield SAME_TOP, label, shift.same_top.mean, shift.same_top.error
        yield DELTA_P, label, shift.delta_p_rms, None
        yield LOG_RATIO, label, shift.log_ratio.mean, shift.log_ratio.error
    for task in row.zeroshot.tasks if row.zeroshot else ():
        for metric, value in task.metrics.items():
            yield metric, task.task, value, task.errors.get(metric)
    if row.pruning and row.pruning.seconds:
        yield PRUNE_SECONDS, "", sum(row.pruning.seconds.values()), None
    yield from _costs(row)


def _costs(row: EvaluationRow) -> Iterator[tuple[str, str, float, Any]]:
    """What the whole run took."""
    if row.cost:
        yield SECONDS, "", row.cost.seconds, None
        yield PEAK, "", float(row.cost.peak_bytes), None
        if row.cost.device_bytes:
            yield DEVICE, "", float(row.cost.device_bytes), None


def _heading(metric: str, on: str) -> str:
    """A measurement's column where a line is a run."""
    return on if metric == PERPLEXITY else f"{on} {metric}".strip()
