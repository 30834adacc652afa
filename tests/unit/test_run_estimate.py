"""The forward passes that a run is reckoned to take, against those that its blocks really run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from end_to_end.tiny import tiny_model

from autoprune.core.sparsity import Unstructured
from autoprune.model.anatomy import examine
from autoprune.model.door import prune_with
from autoprune.run.estimate import forwards
from autoprune.run.memory import shape_of
from autoprune.steps.allocate import Allocate
from autoprune.steps.table import make_steps
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

SAMPLES = 10


@pytest.mark.parametrize(
    "words",
    ["wanda", "wanda,refit", "mixed,wanda,refit", "wanda,barber", "sparsegpt,barber,refit", "allocate,ria", "auto"],
)
def test_the_blocks_run_as_often_as_reckoned(words: str) -> None:
    model: Any = tiny_model()
    steps = make_steps(words.split(","), {})
    ran: list[int] = []
    ids = torch.randint(128, (SAMPLES, 16), generator=torch.Generator().manual_seed(0))
    model.model.layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    prune_with(MemoryStore(model), steps, Unstructured(0.5), ids, batch=1)
    shape = replace(shape_of(model, examine(model), torch.float32, moved=False), samples=SAMPLES, tokens=16)
    reckoned = forwards(shape, steps)
    if "barber" in words:  # by sub-blocks, which no hook sees; backward passes count too
        assert 5 <= reckoned - forwards(shape, tuple(step for step in steps if step.name != "barber")) <= 7
        return
    probes = SAMPLES + 2  # blocks that are called and do not run, to see how they are called; and a few tokens
    # A sub-block for which something better was found may be tried with what it had before, on two held-out samples.
    assert len(ran) - probes == pytest.approx(reckoned * SAMPLES, abs=4 if words == "auto" else 1e-6)


def test_divergence_runs_blocks_as_often_as_reckoned() -> None:
    """A variant runs through the blocks behind its own alone, so all blocks are counted."""
    model: Any = tiny_model(num_hidden_layers=3)
    plain, steps = (Allocate(), Wanda()), (Allocate(allocation="divergence", divergence_samples=4), Wanda())
    ran: list[int] = []
    ids = torch.randint(128, (SAMPLES, 16), generator=torch.Generator().manual_seed(0))
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: ran.append(1))  # a block that is called hollow runs no part
    shape = replace(shape_of(model, examine(model), torch.float32, moved=False), samples=SAMPLES, tokens=16)
    counts = []
    for chosen in (plain, steps):
        ran.clear()
        prune_with(MemoryStore(model), chosen, Unstructured(0.5), ids, batch=1)
        counts.append(len(ran))
    reckoned = (forwards(shape, steps) - forwards(shape, plain)) * 3 * SAMPLES
    assert counts[1] - counts[0] == pytest.approx(reckoned + 1), "and a few tokens once, to see what a block returns"
