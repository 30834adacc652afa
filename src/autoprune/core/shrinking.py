"""What a smaller dense model can best do without: scores of blocks, of an MLP's channels, and of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from autoprune.core.refit import refit


def turned_share(
    before: Float[Tensor, "tokens width"], after: Float[Tensor, "tokens width"]
) -> Float[Tensor, " tokens"]:
    """``1 - cos(x_l, x_{l+1})`` of every token; its mean is a block's influence (ShortGPT, arXiv 2403.03853)."""
    return 1 - functional.cosine_similarity(before.double(), after.double(), dim=-1)


def angular_distance(
    before: Float[Tensor, "samples width"], after: Float[Tensor, "samples width"]
) -> Float[Tensor, ""]:
    """``arccos(cos(x_l, x_{l+n})) / pi``, the mean over samples (arXiv 2403.17887, equation 7)."""
    cosine = functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return cosine.clamp(-1, 1).arccos().mean() / torch.pi


def run_distances(states: Sequence[Float[Tensor, "samples width"]], count: int) -> list[float]:
    """By first block: the angular distance that a run of ``count`` blocks covers.

    ``states`` are the hidden states of the last token in front of every block, and behind the last one.
    """
    return [float(angular_distance(a, b)) for a, b in zip(states, states[count:], strict=False)]


def lowest(scores: Sequence[float], count: int) -> list[int]:
    """The places of the ``count`` lowest scores in ascending order; of equal ones the first goes first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count])


def channel_scores(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> Float[Tensor, " in"]:
    """``G_jj ||W_:j||^2``: what the output loses with an input channel, if nothing makes up for it."""
    return gram.diagonal() * weight.float().square().sum(0)


def expert_score(gates: Float[Tensor, " tokens"], outputs: Float[Tensor, "tokens width"]) -> float:
    """The sum over an expert's tokens of ``gate(x) ||f(x)||``; over their number, REAP's score (arXiv 2510.13999)."""
    return float((gates.double() * outputs.double().norm(dim=-1)).sum())


def compensated(
    weight: Float[Tensor, "out in"], kept: Int[Tensor, " kept"], gram: Float[Tensor, "in in"], damping: float = 0.01
) -> Float[Tensor, "out in"]:
    """The minimum of ``(w - w0)^T (G + lambda I) (w - w0)`` of every row, with zeros in all columns but ``kept``.

    ``lambda`` is ``damping`` times the mean of G's diagonal. A weight that is zero stays zero: such rows are solved by
    conjugate gradients. Returns ``[out, in]``.
    Raises: NumericsError if the Gram or what comes out is not finite.
    """
    weight = weight.float()
    there = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    there[kept] = True
    if bool((weight == 0).any()):
        return refit(weight, there & (weight != 0), gram, damping=damping)
    gone = (~there).nonzero()[:, 0]
    inner = gram[kept][:, kept].double()
    inner.diagonal().add_(damping * gram.diagonal().double().mean())
    factor, failed = torch.linalg.cholesky_ex(inner)
    if int(failed):
        return refit(weight, there.expand_as(weight), gram, damping=damping)
    moved = torch.cholesky_solve(gram[kept][:, gone].double() @ weight[:, gone].T.double(), factor)
    made = torch.zeros_like(weight)
    made[:, kept] = weight[:, kept] + moved.T.float()
    return made
