"""What `autoprune shrink` gives back, and where it is read from again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import OutputError
from autoprune.storage.manifest import Manifest


@dataclass(frozen=True)
class ShrinkResult:
    """A smaller model, and what went."""

    directory: Path
    kept: tuple[int, ...]  # the blocks that stay, by their old numbers
    dropped: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    scores: tuple[float, ...]  # by which blocks were chosen: of every block, run of blocks, or blocks gone so far
    healed: Mapping[int, tuple[float, float]]  # by old number: error on held-out samples, before and after
    entries: Mapping[str, tuple[int, int]]  # of config.json that got smaller, such as widths: before and after
    whole: Mapping[str, Mapping[str, float]]  # by step on the whole model: loss on held-out samples, before and after

    @property
    def parameters_gone(self) -> float:
        """Share of all parameters."""
        return 1 - self.parameters_after / self.parameters_before


def completed(directory: Path, about: dict[str, Any]) -> ShrinkResult:
    """What an earlier run of the same command has made. Raises: OutputError if it was another one."""
    found = Manifest.read(directory)
    if difference := found.difference(about):
        raise OutputError(
            f"--resume: {directory} holds the result of another run: {difference}; choose another directory, or"
            " --overwrite it"
        )
    return result_of(directory, found.raw["shrink"])


def result_of(directory: Path, found: Mapping[str, Any]) -> ShrinkResult:
    """What a manifest says of a smaller model."""
    kept = tuple(note["block"] for note in found["blocks"])
    return ShrinkResult(
        directory,
        kept,
        tuple(found["dropped"]),
        found["parameters_before"],
        found["parameters_after"],
        tuple(found["scores"]),
        {note["block"]: tuple(note["held_out"]) for note in found["blocks"] if "held_out" in note},
        {part["entry"]: (part["before"], part["after"]) for part in found["narrower"]},
        found.get("whole", {}),
    )
