"""Results seen by what they have in common: texts, variants that differ only by seed, layers inside a block."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from autoprune.results.types import EvaluationRow, LayerOutcome, PruningSummary

# settings that say where results go or how they are shown, not how they came about
NOT_SETTINGS = frozenset(
    {
        "seed",
        "save_model",
        "save_ppl",
        "save_zeroshot",
        "delete",
        "overwrite",
        "quiet",
        "cache_dir",
        "datasets_cache_dir",
    }
)
BARBER = ("prune_granularity", "threshold", "prune_metric", "retain_reconstruction")
PRETTY = {
    "magnitude": "Magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "barber": "LLM-Barber",
    "dense": "Dense",
    "given": "Given pattern",
}


@dataclass(frozen=True)
class Text:
    """One evaluation text at one window length: a column of the tables."""

    source: str
    seqlen: int
    name: str  # short form of the source

    @property
    def label(self) -> str:
        """Column header, which states the window length."""
        return f"{self.name} ({self.seqlen})"


@dataclass(frozen=True)
class Spread:
    """A mean and, over several seeds, the sample standard deviation."""

    mean: float
    sd: float | None = None
    count: int = 1


@dataclass(frozen=True)
class Variant:
    """Rows that differ only by their seed."""

    method: str
    target: str
    extra: str  # LLM-Barber's settings, and what else tells it from another variant of the same method and target
    rows: tuple[EvaluationRow, ...]

    @property
    def name(self) -> str:
        """The method in the command line's words, with what sets the variant apart."""
        return f"{self.method} ({self.extra})" if self.extra else self.method

    @property
    def title(self) -> str:
        """The method in the papers' words."""
        words = " + ".join(PRETTY.get(part, part) for part in self.method.split("+"))
        return f"{words} ({self.extra})" if self.extra else words

    @property
    def family(self) -> str:
        """The first pass, whose colour the variant has."""
        return self.method.split("+")[0]

    @property
    def rebuilt(self) -> bool:
        """Whether a second pass followed the first."""
        return "+" in self.method

    @property
    def sparsity(self) -> float:
        """Actual sparsity, mean over seeds."""
        return statistics.fmean(row.sparsity for row in self.rows)

    @property
    def summary(self) -> PruningSummary | None:
        """What pruning did, of the first row that says so."""
        return next((row.pruning for row in self.rows if row.pruning is not None), None)

    def perplexity(self, text: Text) -> Spread | None:
        """Perplexity on a text over the seeds, or None where it was not measured."""
        return spread([v for row in self.rows if (v := perplexity_of(row, text)) is not None])

    def bits_per_byte(self, text: Text) -> Spread | None:
        """Bits per byte on a text over the seeds, or None where they are not known."""
        found = (
            p.bits_per_byte
            for row in self.rows
            for p in row.perplexity
            if (p.source, p.seqlen) == (text.source, text.seqlen)
        )
        return spread([bits for bits in found if bits is not None])


def dense_of(variant: Variant, variants: Sequence[Variant]) -> Variant | None:
    """The dense model that a variant was pruned from; None if it is not among them, or not alone."""
    found = [v for v in variants if is_dense(v.rows[0]) and _model(v) == _model(variant)]
    return found[0] if len(found) == 1 else None


def first_pass_of(variant: Variant, variants: Sequence[Variant]) -> Variant | None:
    """What LLM-Barber rebuilt: the same model, first pass and target; None if it is not among them, or not alone."""
    if not variant.rebuilt:
        return None
    wanted = (variant.method.removesuffix("+barber"), variant.target, _model(variant))
    found = [v for v in variants if (v.method, v.target, _model(v)) == wanted]
    return found[0] if len(found) == 1 else None


def barber_effect(variant: Variant, variants: Sequence[Variant], texts: Sequence[Text]) -> Spread | None:
    """Perplexity after LLM-Barber over before, seed by seed, geometric mean over the texts; None without a first pass
    beside it.
    """
    first = first_pass_of(variant, variants)
    before = {seed_of(row): row for row in first.rows} if first else {}
    ratios = [_ratio(row, before[seed_of(row)], texts) for row in variant.rows if seed_of(row) in before]
    return spread([ratio for ratio in ratios if ratio is not None])


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, and standard deviation where there are several; None for no value. One that is no number makes the mean
    none.
    """
    if not values:
        return None
    finite = all(math.isfinite(v) for v in values)
    mean = statistics.fmean(values) if finite else sum(values)
    return Spread(mean, statistics.stdev(values) if finite and len(values) > 1 else None, len(values))


def is_dense(row: EvaluationRow) -> bool:
    """Whether the row is the unpruned model."""
    return "dense" in (row.method, row.target)


def texts_of(rows: Sequence[EvaluationRow]) -> list[Text]:
    """The evaluation texts in order of first appearance; paths are shortened to file names where that is
    unambiguous.
    """
    keys = list(dict.fromkeys((p.source, p.seqlen) for row in rows for p in row.perplexity))
    sources = {source for source, _ in keys}
    names = {source: PurePosixPath(source.replace("\\", "/")).name or source for source in sources}
    clashes = {name for name in names.values() if list(names.values()).count(name) > 1}
    return [Text(source, seqlen, source if names[source] in clashes else names[source]) for source, seqlen in keys]


def perplexity_of(row: EvaluationRow, text: Text) -> float | None:
    """The row's perplexity on a text."""
    return next((p.perplexity for p in row.perplexity if (p.source, p.seqlen) == (text.source, text.seqlen)), None)


def variants_of(rows: Sequence[EvaluationRow]) -> list[Variant]:
    """Rows gathered by everything but the seed: dense first, then target by target, each in order of appearance."""
    groups: dict[tuple[str, str, str], list[EvaluationRow]] = {}
    for row in rows:
        settings = json.dumps(settings_of(row), sort_keys=True, default=str)
        groups.setdefault((row.method, row.target, settings), []).append(row)
    targets = list(dict.fromkeys(row.target for row in rows))
    order = sorted(groups, key=lambda key: (not is_dense(groups[key][0]), targets.index(key[1])))
    return [Variant(key[0], key[1], _extra(key, groups), tuple(groups[key])) for key in order]


def settings_of(row: EvaluationRow) -> dict[str, Any]:
    """The row's settings without nesting, and without those that change no number."""
    return {k: v for k, v in _flat(row.settings).items() if k not in NOT_SETTINGS}


def seed_of(row: EvaluationRow) -> Any:
    """The row's seed, or None."""
    return _flat(row.settings).get("seed")


def prune_seconds(row: EvaluationRow) -> float | None:
    """Wall seconds of the pruning alone: checking the weights, embedding the samples, the loop over blocks; None for
    the dense model.
    """
    return sum(row.pruning.seconds.values()) if row.pruning and row.pruning.seconds else None


def short_name(layer: LayerOutcome) -> str:
    """The layer's name inside its block: ``self_attn.q_proj``."""
    inside = f".{layer.name}".partition(f".{layer.block}.")[2]
    return inside or layer.name


def sparsity_before(layer: LayerOutcome) -> float | None:
    """Sparsity before LLM-Barber's exchange, or None where it did not run."""
    if "grown" not in layer.notes or "dropped" not in layer.notes or not layer.weights:
        return None
    return (layer.zeros + layer.notes["grown"] - layer.notes["dropped"]) / layer.weights


def sparsity_moved(summary: PruningSummary) -> bool:
    """Whether the exchange carried sparsity from one layer to another (granularity ``block``)."""
    return any(layer.notes.get("grown") != layer.notes.get("dropped") for layer in summary.layers)


def _ratio(after: EvaluationRow, before: EvaluationRow, texts: Sequence[Text]) -> float | None:
    pairs = [(perplexity_of(after, text), perplexity_of(before, text)) for text in texts]
    ratios = [a / b for a, b in pairs if a is not None and b]
    if not ratios or any(not math.isfinite(r) or r <= 0 for r in ratios):
        return None
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _model(variant: Variant) -> Any:
    return settings_of(variant.rows[0]).get("model")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value) if isinstance(value, dict) else {key: value})
    return flat


def _extra(key: tuple[str, str, str], groups: dict[tuple[str, str, str], list[EvaluationRow]]) -> str:
    rivals = [settings_of(rows[0]) for k, rows in groups.items() if k[:2] == key[:2]]
    mine = settings_of(groups[key][0])
    differing = [
        name for name in mine if name not in BARBER and any(other.get(name) != mine[name] for other in rivals)
    ]
    words = [f"{name}={mine[name]}" if not isinstance(mine[name], str) else mine[name] for name in differing]
    return ", ".join([*_barber_words(mine), *words] if key[0].endswith("+barber") else words)


def _barber_words(settings: dict[str, Any]) -> list[str]:
    """LLM-Barber's settings in short: ``block 0.1``, and what is not as usual."""
    granularity, threshold, metric, retain = (settings.get(name) for name in BARBER)
    usual = [f"{granularity} {threshold:g}"] if granularity is not None and threshold is not None else []
    return [
        *usual,
        *([f"metric {metric}"] if metric not in (None, "WD") else []),
        *(["update kept"] if retain else []),
    ]
