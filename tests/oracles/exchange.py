"""LLM-Barber's exchange by comparing pairs one by one. A set is a list of (score, kept?) in index order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from oracles.selection import Keep, Matrix

Place = tuple[int, int, int]  # layer, row, column


@dataclass
class Outcome:
    """The new patterns, and where they differ from the old ones."""

    keep: list[Keep]
    grown: list[Place] = field(default_factory=list)
    dropped: list[Place] = field(default_factory=list)
    inverted: int = 0
    compared: int = 0


def pairs(scores: list[float], kept: list[bool]) -> list[tuple[int, int]]:
    """Pruned positions from the best on, kept ones from the worst on, paired; among equals the lower index first."""
    best_pruned = sorted((i for i, k in enumerate(kept) if not k), key=lambda i: (-scores[i], i))
    worst_kept = sorted((i for i, k in enumerate(kept) if k), key=lambda i: (scores[i], i))
    return list(zip(best_pruned, worst_kept, strict=False))


def inverted(scores: list[float], kept: list[bool]) -> int:
    """How many leading pairs have the pruned score above the kept one."""
    count = 0
    for pruned, keeper in pairs(scores, kept):
        if not scores[pruned] > scores[keeper]:
            break
        count += 1
    return count


def compared_sets(shapes: list[tuple[int, int]], granularity: str) -> list[list[Place]]:
    """The places of every set, in index order."""
    everything = [[(n, r, c) for r in range(rows) for c in range(columns)] for n, (rows, columns) in enumerate(shapes)]
    if granularity == "block":
        return [[place for layer in everything for place in layer]]
    if granularity == "layer":
        return everything
    index = {"output1": 1, "input1": 2}[granularity]
    sets = []
    for layer in everything:
        for number in sorted({place[index] for place in layer}):
            sets.append([place for place in layer if place[index] == number])
    return sets


def exchange(
    scores: list[Matrix], keep: list[Keep], granularity: str, threshold: float, m: int | None = None
) -> Outcome:
    """Exchanges floor(threshold * n) pairs in every set; with ``m``, groups of m drop as many as they gain."""
    outcome = Outcome([[list(row) for row in layer] for layer in keep])
    for places in compared_sets([(len(layer), len(layer[0])) for layer in keep], granularity):
        values = [scores[n][r][c] for n, r, c in places]
        kept = [keep[n][r][c] for n, r, c in places]
        count = inverted(values, kept)
        chosen = pairs(values, kept)[: math.floor(threshold * count)]
        outcome.inverted += count
        outcome.compared += min(sum(kept), len(kept) - sum(kept))
        outcome.grown += [places[pruned] for pruned, _ in chosen]
        if m is None:
            outcome.dropped += [places[keeper] for _, keeper in chosen]
    if m is not None:
        _balance_groups(outcome, scores, keep, m)
    for n, r, c in outcome.grown:
        outcome.keep[n][r][c] = True
    for n, r, c in outcome.dropped:
        outcome.keep[n][r][c] = False
    return outcome


def _balance_groups(outcome: Outcome, scores: list[Matrix], keep: list[Keep], m: int) -> None:
    """Every group gives up as many of its kept weights, worst first, as it gained; it can't gain more than it has."""
    grown, outcome.grown = outcome.grown, []
    for group in sorted({(n, r, c // m) for n, r, c in grown}):
        n, r, number = group
        gained = sorted(
            (p for p in grown if (p[0], p[1], p[2] // m) == group), key=lambda p: (-scores[n][r][p[2]], p[2])
        )
        members = range(number * m, number * m + m)
        worst = sorted((c for c in members if keep[n][r][c]), key=lambda c: (scores[n][r][c], c))
        count = min(len(gained), len(worst))
        outcome.grown += gained[:count]
        outcome.dropped += [(n, r, c) for c in worst[:count]]
