"""How far predictions moved, one token and one word of the vocabulary at a time. Logits are nested lists."""

from __future__ import annotations

import math
import statistics


def log_softmax(row: list[float]) -> list[float]:
    """ln of what the logits make of every word."""
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


def token(dense: list[float], pruned: list[float], following: int) -> tuple[float, float, float, bool]:
    """Divergence, both losses, same first word."""
    p, q = log_softmax(dense), log_softmax(pruned)
    kld = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a > -16)
    return kld, -p[following], -q[following], dense.index(max(dense)) == pruned.index(max(pruned))


def quantile(values: list[float], share: float) -> float:
    """Between the two neighbours by a straight line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def figures(tokens: list[tuple[float, float, float, bool]]) -> dict[str, float]:
    """What is reported of the tokens."""
    kld = [t[0] for t in tokens]
    delta = [math.exp(-t[2]) - math.exp(-t[1]) for t in tokens]
    ratio = [t[2] - t[1] for t in tokens]
    root = math.sqrt(len(tokens))
    return {
        "kld": statistics.fmean(kld),
        "kld error": statistics.stdev(kld) / root,
        **{f"kld {share}": quantile(kld, share) for share in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)},
        "delta_p": statistics.fmean(delta),
        "delta_p rms": math.sqrt(statistics.fmean([d * d for d in delta])),
        "same_top": statistics.fmean([float(t[3]) for t in tokens]),
        "log_ratio": statistics.fmean(ratio),
        "log_ratio error": statistics.stdev(ratio) / root,
    }
