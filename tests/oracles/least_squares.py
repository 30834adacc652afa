"""Least squares row by row in float64: the kept set solved densely, the mixed target from the tokens themselves."""

from __future__ import annotations

import torch
from torch import Tensor


def inputs(tokens: int, features: int, generator: torch.Generator) -> Tensor:
    """Inputs that hang together and differ in size, as real ones do."""
    mixing = torch.randn(features, features, generator=generator) / features**0.5 + torch.eye(features)
    loudness = torch.randn(features, generator=generator).exp()
    return torch.randn(tokens, features, generator=generator) @ mixing * loudness


def problem(rows: int, features: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights and the Gram of such inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = inputs(tokens, features, generator)
    return torch.randn(rows, features, generator=generator), x.T @ x


def damped(gram: Tensor, damping: float) -> Tensor:
    """G + lambda I with lambda a share of the mean diagonal."""
    g = gram.double()
    return g + damping * g.diagonal().mean() * torch.eye(len(g), dtype=torch.float64)


def refit(weight: Tensor, keep: Tensor, gram: Tensor, damping: float) -> Tensor:
    """For every row the kept weights S solve ``H[S, S] x = H[S, :] w0``."""
    hessian, solved = damped(gram, damping), torch.zeros_like(weight, dtype=torch.float64)
    for row in range(len(weight)):
        kept = keep[row].nonzero()[:, 0]
        if len(kept):
            solved[row, kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight[row].double())
    return solved


def objective(solved: Tensor, weight: Tensor, gram: Tensor, damping: float) -> Tensor:
    """``(w - w0)^T H (w - w0)`` of every row."""
    off = solved.double() - weight.double()
    return ((off @ damped(gram, damping)) * off).sum(1)


def mixed(weight: Tensor, dense: Tensor, pruned: Tensor, share: float, damping: float) -> Tensor:
    """The minimum over V of ``|W x_dense - V x_pruned|^2 + lambda |W - V|^2``: one least squares of stacked tokens."""
    w, dense, pruned = weight.double(), dense.double(), pruned.double()
    lam = damping * pruned.square().sum(0).mean()
    unit = lam.sqrt() * torch.eye(pruned.shape[1], dtype=torch.float64)
    inputs, outputs = torch.cat([pruned, unit]), torch.cat([dense @ w.T, unit @ w.T])
    return (1 - share) * w + share * torch.linalg.lstsq(inputs, outputs).solution.T
