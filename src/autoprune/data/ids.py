"""Token ids that were handed over, in tensors and arrays of any kind: whole numbers, and which of them are a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.errors import DataError
from autoprune.recipe.checks import short

if TYPE_CHECKING:
    from torch import Tensor


def whole_numbers(value: Any, flag: str) -> Tensor:
    """Token ids as an int64 tensor on the CPU, in the shape that they have. Raises: DataError for anything else."""
    import torch

    if getattr(getattr(value, "dtype", None), "kind", None) in ("i", "u"):  # numpy's, in any order of bytes or rows
        value = value.astype("int64")  # what is too large becomes negative, which is refused as no token id
    try:
        found = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            remedy = "a Dataset's lists become rows with DataLoader(data.with_format('torch'), …)"
        else:
            remedy = "give rows of one length, or the texts"
        raise DataError(
            f"{flag}: {short(value)} can't be made a tensor of token ids ({short(str(error))}); {remedy}"
        ) from error
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        kind = str(found.dtype).removeprefix("torch.")
        raise DataError(f"{flag}: token ids are whole numbers, and these are {kind}; give what a tokenizer returns")
    if found.is_nested or found.is_meta:
        odd = (
            "of a nested tensor inside a batch are not read"
            if found.is_nested
            else "on the meta device have no values"
        )
        raise DataError(f"{flag}: token ids {odd}; give an ordinary tensor of them")
    return found.detach().to_dense().to("cpu", torch.int64)


def mask_in(pack: Sequence[Any]) -> Any:
    """What of a batch of tensors beside its token ids is an attention mask, to judge by its shape and values."""
    like = [part for part in pack[1:] if getattr(part, "shape", None) == pack[0].shape]
    return next((part for part in like if is_mask(part)), None)


def is_mask(part: Any) -> bool:
    """Whether a tensor or array holds nothing but 0 and 1."""
    return bool(((part == 0) | (part == 1)).all())
