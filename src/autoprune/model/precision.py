"""In which precision gradients are taken: the sub-block's passes run in it, sums stay in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from autoprune.steps.base import Step

# By --compute_dtype. float32 is the default on every device: see docs/performance.md for what the others change.
COMPUTE_DTYPES = {"auto": torch.float32, "float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@contextlib.contextmanager
def computing_in(block: nn.Module, dtype: torch.dtype, leave: Collection[str] = ()) -> Iterator[None]:
    """While it lasts, the block's parameters, but those that the caller replaces, are in ``dtype`` and gather no
    gradients.

    Afterwards they are what they were, bit for bit.
    """
    named = list(block.named_parameters())
    saved = [(p, p.data) for n, p in named if n not in leave and p.is_floating_point() and p.dtype != dtype]
    trainable = [p for _, p in named if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for parameter, data in saved:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def narrowed(block: nn.Module, own: torch.dtype, compute: torch.dtype) -> Iterator[torch.dtype]:
    """What a rebuilt block runs in: the model's own precision, unless a narrower one is asked for."""
    if compute.itemsize >= own.itemsize:
        yield own
        return
    with computing_in(block, compute):
        yield compute


@contextlib.contextmanager
def replaying(step: Step, block: nn.Module, own: torch.dtype) -> Iterator[torch.dtype]:
    """What a block runs in again whose pass ended with this step, so that it gives the same bits."""
    word = str(getattr(step, "compute_dtype", "auto")) if step.needs.gradients else "auto"
    compute = COMPUTE_DTYPES[word] if step.needs.gradients else own
    with tensor_cores(word), narrowed(block, own, compute) as dtype:
        yield dtype


@contextlib.contextmanager
def tensor_cores(word: str) -> Iterator[None]:
    """While it lasts, CUDA multiplies float32 matrices in TF32 if ``word`` is ``tf32``, else in full float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = word == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
