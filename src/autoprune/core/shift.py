"""How far a model's predictions are from a dense model's: the plain values of reports. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its standard error, ``sd / sqrt(tokens)`` with the tokens taken as independent."""

    mean: float
    error: float


@dataclass(frozen=True)
class Spread:
    """Where the values of all tokens lie: quantiles, with straight lines between neighbours, and the largest one."""

    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    maximum: float


@dataclass(frozen=True)
class Stretch:
    """The tokens at places ``start`` to ``stop - 1`` of their windows: mean losses and divergence, in nats."""

    start: int
    stop: int
    dense_loss: float
    pruned_loss: float
    kld: float


@dataclass(frozen=True)
class Bar:
    """How many tokens have a divergence in ``[low, high)``, in nats."""

    low: float
    high: float
    tokens: int


@dataclass(frozen=True)
class PredictionShift:
    """One model against the dense one on the scored tokens of a text; logarithms are natural.

    ``kld`` in nats; ``delta_p`` is the probability of the token that follows, pruned less dense; ``same_top`` the
    share of tokens for which both put the same token first; ``log_ratio`` is ln(pruned perplexity / dense perplexity)
    over the scored tokens, its error that of the paired differences.
    """

    windows: int
    seqlen: int
    tokens: int  # that were scored, in all windows together
    kld: Estimate
    kld_spread: Spread
    delta_p: Estimate
    delta_p_rms: float
    same_top: Estimate
    log_ratio: Estimate
    dense_perplexity: float  # over the scored tokens, which have half a window or more before them
    pruned_perplexity: float
    stretches: tuple[Stretch, ...] = field(repr=False)
    bars: tuple[Bar, ...] = field(repr=False)
