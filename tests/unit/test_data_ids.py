"""Token ids in tensors and arrays of odd kinds, and what beside them is a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autoprune.data.ids import mask_in, whole_numbers
from autoprune.errors import DataError

ROWS = torch.arange(6).view(2, 3)


@pytest.mark.parametrize("kind", ["<i2", ">i4", ">u8", "<u4"])
def test_arrays_of_any_whole_numbers(kind: str) -> None:
    found = whole_numbers(ROWS.numpy().astype(kind)[:, ::-1], "--eval_data")
    assert found.dtype == torch.int64 and torch.equal(found, ROWS.flip(1))


def test_what_is_too_large_is_no_id() -> None:
    """Negative numbers are refused where ids are compared with the vocabulary."""
    assert int(whole_numbers(np.full((1, 2), 2**63 + 5, dtype=np.uint64), "--eval_data").max()) < 0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.nested.nested_tensor([ROWS[0], ROWS[1][:2]], layout=torch.jagged), "of a nested tensor inside a batch"),
        (ROWS.to("meta"), "on the meta device have no values"),
        (ROWS.float(), "these are float32"),
        ([[1, 2], [3]], "rows of one length"),
    ],
)
def test_what_is_none_is_named(value: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        whole_numbers(value, "--eval_data")


def test_a_mask_holds_0_and_1_in_the_shape_of_the_ids() -> None:
    mask = torch.ones_like(ROWS)
    assert mask_in((ROWS, ROWS + 2, mask)) is mask
    assert mask_in((ROWS, mask[0])) is None and mask_in((ROWS, ROWS)) is None
