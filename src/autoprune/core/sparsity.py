"""Sparsity targets: what share of the weights goes, and under which pattern."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from autoprune.errors import RecipeError


@dataclass(frozen=True)
class Unstructured:
    """``floor(ratio * n)`` of the n weights that a method compares together become zero, wherever they are."""

    ratio: float

    def __str__(self) -> str:
        return f"unstructured {self.ratio:g}"


@dataclass(frozen=True)
class SemiStructured:
    """At most ``n`` non-zero weights among every ``m`` consecutive ones along the input."""

    n: int
    m: int

    @property
    def ratio(self) -> float:
        """Fraction of weights that is zero when every group is full."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Counted:
    """Exactly ``zeros`` of a layer's ``weights`` become zero; by row, the rows differ by one at most."""

    zeros: int
    weights: int

    @property
    def ratio(self) -> float:
        """Fraction of weights that is zero."""
        return self.zeros / self.weights

    def between(self, start: int, stop: int, columns: int) -> Counted:
        """The part of some of the layer's columns; over all parts the zeros add up exactly."""
        zeros = self.zeros * stop // columns - self.zeros * start // columns
        return Counted(zeros, self.weights // columns * (stop - start))

    def __str__(self) -> str:
        return f"{self.zeros} of {self.weights}"


Target = Unstructured | SemiStructured | Counted


def target_from(kind: str, **values: Any) -> Target:
    """The inverse of noting a target's kind and fields."""
    return {cls.__name__: cls for cls in (Unstructured, SemiStructured, Counted)}[kind](**values)


def parse_target(sparsity_type: str, ratio: float | None) -> Target | None:
    """Reads ``--sparsity_type`` and ``--sparsity_ratio``; None means: leave the model dense.

    Raises: RecipeError if either is malformed or they contradict each other.
    """
    check_ratio(ratio)
    if sparsity_type == "unstructured":
        if ratio is None:
            raise RecipeError(
                "--sparsity_ratio is needed with --sparsity_type unstructured: 0.5 zeroes half of the weights, 0 only"
                " evaluates the dense model"
            )
        return Unstructured(float(ratio)) if ratio > 0 else None
    target = _parse_n_m(sparsity_type)
    if ratio is not None and ratio == 0:
        return None
    if ratio is not None and not math.isclose(ratio, target.ratio, abs_tol=1e-6):
        raise RecipeError(
            f"--sparsity_type {sparsity_type} makes {target.ratio:g} of the weights zero, but --sparsity_ratio says"
            f" {ratio:g}; drop --sparsity_ratio or make them agree"
        )
    return target


def check_ratio(ratio: float | None) -> None:
    """Raises: RecipeError unless ``ratio`` is None or a number in [0, 1)."""
    if ratio is None:
        return
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or math.isnan(ratio):
        raise RecipeError(f"--sparsity_ratio {ratio!r} is not a number; give a fraction such as 0.5")
    if not 0 <= ratio < 1:
        raise RecipeError(
            f"--sparsity_ratio {ratio:g} is outside [0, 1); give the fraction of weights to zero, such as 0.5"
        )


def _parse_n_m(text: str) -> SemiStructured:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise RecipeError(f"--sparsity_type {text!r} is neither `unstructured` nor N:M; write for example 2:4")
    n, m = int(match[1]), int(match[2])
    if n > m:
        raise RecipeError(
            f"--sparsity_type {text}: N must not be greater than M (at most {n} non-zero among {m} says nothing)"
        )
    if n in (0, m):
        raise RecipeError(
            f"--sparsity_type {text} would {'zero every weight' if n == 0 else 'prune nothing'}; choose 0 < N < M,"
            " such as 2:4"
        )
    return SemiStructured(n, m)


def reading(target: Target) -> str | None:
    """How N:M is read here, when the field is split on it (N other than M/2); else None."""
    if isinstance(target, SemiStructured) and 2 * target.n != target.m:
        return f"{target}: at most {target.n} of every {target.m} weights stay non-zero ({target.ratio:.0%} sparse)"
    return None
