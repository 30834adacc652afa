"""What the numbers say in sentences: which variant is best, and whether the seeds bear it out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from autoprune.results import numbers
from autoprune.results.tidy import PERPLEXITY, Results
from autoprune.results.variants import Text, Variant

SEVERAL = 0.05  # a difference that chance alone makes more seldom than this is called clear


def findings(results: Results) -> Iterator[str]:
    """A sentence for each model, target and text: what is best of those with equal sparsity, and how sure that is."""
    for group in results.groups():
        for text in results.texts:
            order = results.best(group, text)
            if len(order) < 2:
                continue
            first, second = order[:2]
            own = results.of_model(first.model) if len(results.models) > 1 else results
            where = f"{first.model}, {first.target}" if own is not results else first.target
            column = [results.spread(v, PERPLEXITY, text.label) for v in results.variants]
            digits = numbers.column_digits(column)  # as the table beside it
            spread = results.spread(first, PERPLEXITY, text.label)
            dense = results.dense_of(first)
            beside = results.spread(dense, PERPLEXITY, text.label) if dense else None
            value = numbers.spread_text(spread, digits)
            value += f", dense {numbers.spread_text(beside, digits)}" if beside else ""
            yield f"Best at {where} on {text.label}: {first.name}, {value}. {_verdict(results, first, second, text)}"
            others = [v for v in results.variants if (v.model, v.target) == (first.model, first.target)]
            if apart := [v.name for v in others if v not in group]:
                yield f"Not compared at {where}, for their share of zeros is another: {', '.join(apart)}."


def paired(results: Results, first: Variant, second: Variant, text: Text) -> tuple[float, float | None, int]:
    """How much higher the second's perplexity is, on average over the common seeds; two-sided p of a paired t-test
    (None with fewer than two seeds, or without any scatter and difference); the number of seeds.
    """
    mine, theirs = (results.by_seed(v, PERPLEXITY, text.label) for v in (first, second))
    apart = [theirs[seed] - mine[seed] for seed in mine if seed in theirs]
    if not apart:
        return math.nan, None, 0
    mean = statistics.fmean(apart)
    if len(apart) < 2:
        return mean, None, len(apart)
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    if error == 0:
        return mean, 0.0 if mean else None, len(apart)
    return mean, two_sided(mean / error, len(apart) - 1), len(apart)


def two_sided(t: float, freedom: int) -> float:
    """Probability that Student's t of so many degrees of freedom lies further from zero than ``t``: the finite series
    for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    rest = 0.0 if freedom == 1 else sine * total
    return max(0.0, 1 - (2 / math.pi * (angle + rest) if freedom % 2 else rest))


def _verdict(results: Results, first: Variant, second: Variant, text: Text) -> str:
    mean, p, seeds = paired(results, first, second, text)
    if seeds == 0:
        return f"Next is {second.name}; no seed is common to both, so nothing is said about chance."
    next_one = f"Next is {second.name}, higher by {numbers.number_text(mean, digits=2)}"
    if seeds == 1:
        return f"{next_one}; one seed says nothing about chance."
    if p is None:
        return f"{next_one} with every one of {seeds} seeds: no difference."
    how = "a clear difference" if p < SEVERAL else "which may be chance"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"{next_one} over {seeds} seeds, {how} (paired t-test, {shown})."
