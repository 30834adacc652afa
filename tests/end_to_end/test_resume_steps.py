"""Killed in the midst of a step that works for long, a run goes on with --resume and ends in the same files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from end_to_end.forks import Forks
from end_to_end.test_resume import finished
from end_to_end.tiny import Texts, contents, flags, save_tiny, tiny_model

BLOCKS = 4
RUN: dict[str, Any] = {
    "nsamples": 10,
    "batch_size": 1,
    "sparsity_ratio": 0.5,
}  # nine samples to train on, eight for auto
STEP = "autoprune.core.masked_adam:MaskedAdam.step"
TRIES = {"auto_tries": "wanda+refit,mixed+wanda"}
ALLOCATION = {"allocation": "divergence", "divergence_samples": 2}
CASES: dict[str, tuple[dict[str, Any], tuple[str, int], int]] = {  # options, when it dies, finished blocks by then
    "wanda,reconstruct": ({"epochs": 1}, (STEP, 9 + 5), 1),
    "auto": (TRIES, ("autoprune.model.block:Block.decisions", 2 * 2 + 2), 2),
    "wanda,distill": ({}, (STEP, 5), BLOCKS),
    "allocate,wanda": (ALLOCATION, ("autoprune.model.variants:Variant.run", 11), 0),
}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Starts processes."""
    server = Forks()
    yield server
    server.close()


@pytest.mark.parametrize("steps", CASES)
def test_killed_inside_a_step_and_resumed_gives_the_same_files(
    forks: Forks, texts: Texts, tmp_path: Path, steps: str
) -> None:
    options, when, blocks = CASES[steps]
    deep, log = save_tiny(tmp_path / "model", tiny_model(num_hidden_layers=BLOCKS)), tmp_path / "log"

    def given(out: str, **more: Any) -> list[str]:
        where = {"save_model": tmp_path / out, "prune_method": None}
        return flags(deep, texts, **RUN, **options, **where, steps=steps, **more)

    for out in ("reference", "again"):
        forks.start(given(out), log)
        assert forks.wait() == 0, log.read_text()
    assert contents(tmp_path / "again") == contents(tmp_path / "reference"), "two runs give the same bits"
    forks.start(given("out"), log, die_in_call=when)
    assert forks.wait() == -signal.SIGKILL, log.read_text()
    assert finished(tmp_path / "out") == blocks
    forks.start(given("out", resume=True), log)
    assert forks.wait() == 0, log.read_text()
    assert f"resuming: {blocks} of {BLOCKS} blocks are finished" in log.read_text() or not blocks
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
