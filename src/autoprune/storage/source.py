"""The weights of a model as they will be pruned, however they are stored."""

from __future__ import annotations

from pathlib import Path

from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.dequantise import as_bfloat16
from autoprune.storage.gguf import SUFFIX, open_gguf


def open_checkpoint(place: Path) -> Checkpoint:
    """The checkpoint in a directory, or a GGUF file; quantised weights are seen as the bfloat16 values that they
    stand for.

    Raises: ModelError if it is missing, damaged, or quantised in a way that is not read here.
    """
    if place.suffix == SUFFIX and place.is_file():
        return open_gguf(place)
    return as_bfloat16(Checkpoint.open(place))
