"""Which weights go: sort, cut off exactly floor(ratio * n), nothing clever. Matrices are nested lists."""

from __future__ import annotations

import math
from fractions import Fraction

Matrix = list[list[float]]
Keep = list[list[bool]]


def lowest(scores: list[float], count: int) -> set[int]:
    """Positions of the ``count`` lowest scores; among equals the lower position first."""
    return set(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count])


def keep_in_layer(scores: Matrix, ratio: float) -> Keep:
    """All weights of the layer are compared with each other."""
    width = len(scores[0])
    flat = [s for row in scores for s in row]
    gone = lowest(flat, math.floor(Fraction(str(ratio)) * len(flat)))
    return [[r * width + c not in gone for c in range(width)] for r in range(len(scores))]


def keep_in_rows(scores: Matrix, ratio: float) -> Keep:
    """The weights of each output row are compared with each other."""
    kept = []
    for row in scores:
        gone = lowest(row, math.floor(Fraction(str(ratio)) * len(row)))
        kept.append([c not in gone for c in range(len(row))])
    return kept


def keep_in_groups(scores: Matrix, n: int, m: int) -> Keep:
    """Of every m consecutive weights of a row the n best stay."""
    kept = []
    for row in scores:
        flags = [True] * len(row)
        for start in range(0, len(row), m):
            for i in lowest(row[start : start + m], m - n):
                flags[start + i] = False
        kept.append(flags)
    return kept


def magnitude_scores(weight: Matrix) -> Matrix:
    """|W|."""
    return [[abs(w) for w in row] for row in weight]


def wanda_scores(weight: Matrix, tokens: Matrix) -> Matrix:
    """|W| * ||x||, with x all values that a feature takes over the tokens."""
    norms = [math.sqrt(sum(token[j] ** 2 for token in tokens)) for j in range(len(weight[0]))]
    return [[abs(w) * norms[j] for j, w in enumerate(row)] for row in weight]
