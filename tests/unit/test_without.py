"""What a block that is tried without an earlier one says, and what is none of its business."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.errors import ModelError
from autoprune.evaluation.without import _run


def _ending_in(error: Exception) -> Any:
    def run(_block: Any) -> None:
        raise error

    return SimpleNamespace(run=run)


@pytest.mark.parametrize("error", [KeyError("keys of 1"), TypeError("None"), AttributeError("no states")])
def test_a_block_that_misses_something_is_named(error: Exception) -> None:
    with pytest.raises(ModelError, match=r"layers\.4 does not run without block 1"):
        _run(_ending_in(error), SimpleNamespace(name="layers.4"), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), OSError("No space left")])
def test_memory_and_disk_are_not_its_fault(error: Exception) -> None:
    with pytest.raises(type(error)):
        _run(_ending_in(error), SimpleNamespace(name="layers.4"), 1)  # type: ignore[arg-type]
