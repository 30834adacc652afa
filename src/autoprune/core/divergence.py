"""How far predictions moved: token by token from two models' logits, then in figures.

The definitions are those by which quantised models are judged today. Logits are looked at in slices of a few tokens
and never copied as a whole; what stays of a token is four numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from autoprune.core.shift import Bar, Estimate, PredictionShift, Spread, Stretch
from autoprune.errors import DataError

LEAST_LOG_P = -16.0  # tokens that the dense model thinks less likely than e^-16 are left out of the divergence
SLICE = (
    2**19
)  # numbers of one model's logits that are looked at together in float32: few enough for a processor's cache
RUN = 256  # neighbours of which the largest is sought first
STRETCHES = 8
LEAST_BAR, BARS_PER_DECADE = 1e-6, 4


@dataclass(frozen=True)
class TokenShifts:
    """What is kept of every scored token: divergence, both losses (nats), whether both put the same token first."""

    kld: Float32[Tensor, "*tokens"]
    dense_loss: Float32[Tensor, "*tokens"]
    pruned_loss: Float32[Tensor, "*tokens"]
    same_top: Bool[Tensor, "*tokens"]

    @classmethod
    def joined(cls, parts: Sequence[TokenShifts], dim: int = 0) -> TokenShifts:
        """All parts one behind the other."""
        return cls(*(torch.cat(columns, dim) for columns in zip(*(part.values for part in parts), strict=True)))

    @property
    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in the order of the fields."""
        return self.kld, self.dense_loss, self.pruned_loss, self.same_top

    def view(self, *shape: int) -> TokenShifts:
        """The same tokens in another layout, such as ``[windows, tokens]``."""
        return TokenShifts(*(tensor.view(*shape) for tensor in self.values))


def mean_divergence(
    dense: Float[Tensor, "samples tokens vocab"], pruned: Float[Tensor, "samples tokens vocab"]
) -> Float[Tensor, ""]:
    """``Σ p (ln p − ln q)`` in nats, p dense and q pruned, in float32: the mean over all tokens, to train by."""
    p, q = dense.float().log_softmax(-1), pruned.float().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / dense[..., 0].numel()


def first_scored(seqlen: int) -> int:
    """The first place of a window whose prediction is scored: the second half predicts with some text before it.

    Of windows of two tokens, the one prediction that there is. Raises: DataError for less.
    """
    if seqlen < 2:
        raise DataError(
            f"windows of {seqlen} token hold no token that could be predicted; give windows of at least 2 (--seqlen)"
        )
    return min(seqlen // 2, seqlen - 2)


def token_shifts(
    dense: Float[Tensor, "tokens vocab"],
    pruned: Sequence[Float[Tensor, "tokens vocab"]],
    following: Int[Tensor, " tokens"],
) -> list[TokenShifts]:
    """What each of the pruned models' logits makes of the same tokens, against the dense model's logits.

    ``KLD = Σ p (ln p − ln q)`` over the tokens of the vocabulary with ``ln p > −16``, p dense, q pruned, in float32;
    equal logits give exactly 0. Of equally likely first tokens the one with the lowest number counts.
    NaN or infinite logits make a token's losses NaN or infinite.
    """
    rows = max(1, SLICE // dense.shape[1])
    found: list[list[TokenShifts]] = []
    for part, target, *others in zip(
        dense.split(rows), following.split(rows), *(x.split(rows) for x in pruned), strict=True
    ):
        log_p = _log_softmax(part)
        p, left_out, top = log_p.exp(), log_p <= LEAST_LOG_P, _argmax(part)
        dense_loss = _loss(log_p, target)
        shifts = []
        for other in others:
            log_q = _log_softmax(other)
            pruned_loss, same = _loss(log_q, target), _argmax(other) == top
            kld = torch.linalg.vecdot(p, torch.sub(log_p, log_q, out=log_q).masked_fill_(left_out, 0.0))
            shifts.append(TokenShifts(kld, dense_loss, pruned_loss, same))
        found.append(shifts)
    return [TokenShifts.joined(parts) for parts in zip(*found, strict=True)]


def summarise(tokens: TokenShifts, seqlen: int) -> PredictionShift:
    """Figures over the scored tokens ``[windows, tokens]`` of windows of ``seqlen`` tokens, added up in float64."""
    kld, dense, pruned = (x.double() for x in (tokens.kld, tokens.dense_loss, tokens.pruned_loss))
    delta_p = (-pruned).exp() - (-dense).exp()
    ordered = kld.flatten().sort().values
    return PredictionShift(
        windows=kld.shape[0],
        seqlen=seqlen,
        tokens=kld.numel(),
        kld=_estimate(kld),
        kld_spread=Spread(*(_quantile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0))),
        delta_p=_estimate(delta_p),
        delta_p_rms=float(delta_p.square().mean().sqrt()),
        same_top=_estimate(tokens.same_top.double()),
        log_ratio=_estimate(pruned - dense),
        dense_perplexity=math.exp(min(float(dense.mean()), 700.0)),
        pruned_perplexity=math.exp(min(float(pruned.mean()), 700.0)),
        stretches=_stretches(kld, dense, pruned, seqlen),
        bars=_bars(ordered),
    )


def _log_softmax(x: Float[Tensor, "tokens vocab"]) -> Float32[Tensor, "tokens vocab"]:
    """``x.log_softmax(-1)`` in float32, its sum taken piece by piece.

    torch's own loses digits where many small terms follow a few large ones: up to 2e-4 with 50,000 words (measured).
    """
    x = x.float()
    x = x - x.amax(-1, keepdim=True)
    return x.sub_(x.exp().sum(-1, keepdim=True).log_())


def _loss(log_p: Float[Tensor, "tokens vocab"], target: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    return -log_p.gather(1, target[:, None])[:, 0]


def _argmax(x: Float[Tensor, "tokens vocab"]) -> Int[Tensor, " tokens"]:
    """``x.argmax(-1)``, the first of equals, by the largest of every run of neighbours: much quicker on a CPU."""
    whole = x.shape[1] // RUN * RUN
    if whole in (0, RUN):
        return x.argmax(-1)
    runs = x[:, :whole].unflatten(1, (-1, RUN))
    best, run = runs.amax(-1).max(-1)
    top = run * RUN + runs[torch.arange(len(x), device=x.device), run].argmax(-1)
    if whole == x.shape[1]:
        return top
    last, place = x[:, whole:].max(-1)
    return torch.where(last > best, whole + place, top)


def _estimate(values: Float[Tensor, "windows tokens"]) -> Estimate:
    error = float(values.std()) / math.sqrt(values.numel()) if values.numel() > 1 else 0.0
    return Estimate(float(values.mean()), error)


def _quantile(ordered: Float[Tensor, " tokens"], share: float) -> float:
    """By straight lines between neighbours, as ``torch.quantile``, which takes no more than 16 million numbers."""
    place = share * (len(ordered) - 1)
    below, above = float(ordered[math.floor(place)]), float(ordered[math.ceil(place)])
    return below + (above - below) * (place - math.floor(place))


def _stretches(kld: Tensor, dense: Tensor, pruned: Tensor, seqlen: int) -> tuple[Stretch, ...]:
    """The scored part of the windows in up to eight stretches of almost equal length."""
    scored = kld.shape[1]
    first = seqlen - scored  # place of the first token that is predicted
    count = min(STRETCHES, scored)
    bounds = [scored * i // count for i in range(count + 1)]
    means = [[float(x[:, a:b].mean()) for x in (dense, pruned, kld)] for a, b in pairwise(bounds)]
    return tuple(Stretch(first + a, first + b, *mean) for (a, b), mean in zip(pairwise(bounds), means, strict=True))


def _bars(ordered: Float[Tensor, " tokens"]) -> tuple[Bar, ...]:
    """Counts by size, four bars for each power of ten, from the smallest value on; all below 1e-6 are in one bar."""
    highest = float(ordered[-1])
    count = math.floor(BARS_PER_DECADE * math.log10(highest / LEAST_BAR)) + 1 if highest >= LEAST_BAR else 0
    bounds = [LEAST_BAR * 10 ** (i / BARS_PER_DECADE) for i in range(count + 1)]
    places = [0, *torch.searchsorted(ordered, ordered.new_tensor(bounds)).tolist()]
    places[-1] = len(ordered)  # the highest value itself
    bars = [Bar(low, high, b - a) for low, high, a, b in zip([0.0, *bounds], bounds, places, places[1:], strict=False)]
    filled = [i for i, bar in enumerate(bars) if bar.tokens]
    return tuple(bars[filled[0] : filled[-1] + 1])
