"""McNemar's test: whether two ways of answering the same items differ by more than chance."""

from __future__ import annotations

import math

EXACT_UP_TO = 1000  # discordant items; beyond it the chi-squared approximation is as good


def mcnemar(one_way: int, other_way: int) -> float:
    """Two-sided p-value of McNemar's test: exact (binomial), for many items by corrected chi-squared.

    ``one_way`` and ``other_way`` count the items that only the first, and only the second, answered correctly.
    """
    total = one_way + other_way
    if total == 0:
        return 1.0
    if total > EXACT_UP_TO:
        return math.erfc(max(0, abs(one_way - other_way) - 1) / math.sqrt(2 * total))
    tail = sum(math.comb(total, i) for i in range(min(one_way, other_way) + 1))
    return min(1.0, 2 * tail / 2**total)
