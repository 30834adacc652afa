"""How often the program does what costs time: counts, not seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from configs import tiny_ids, tiny_model
from torch import nn

from autoprune.core import curvature
from autoprune.core.sparsity import Unstructured
from autoprune.core.statistics import InputGram, InputNorm
from autoprune.model.calls import PROBE_TOKENS
from autoprune.model.door import prune_with
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

SAMPLES, BATCH = 6, 2
BATCHES = SAMPLES // BATCH
GROUPS = 4  # q k v; o; gate up; down


@contextmanager
def counted(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts runs of each module of the blocks on samples (not on the probe's few tokens), Gram products and
    factorisations.
    """
    counts: Counter[str] = Counter()

    def count(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            counts[name if x.shape[1] > PROBE_TOKENS else f"probe {name}"] += 1

        return hook

    for i, block in enumerate(model.model.layers):
        for name, module in (("block", block), ("attention", block.self_attn.q_proj), ("mlp", block.mlp.gate_proj)):
            module.register_forward_pre_hook(count(f"{name} {i}"), with_kwargs=True)
    for owner, attribute in ((InputGram, "update"), (InputNorm, "update"), (curvature, "_try_factor")):
        original = getattr(owner, attribute)

        def counting(
            *args: Any, _original: Any = original, _name: str = f"{owner.__name__.rsplit('.')[-1]}.{attribute}"
        ) -> Any:
            counts[_name] += 1
            return _original(*args)

        monkeypatch.setattr(owner, attribute, counting)
    yield counts


class Counted(MemoryStore):
    """Forgets, when a walk begins, what ran before it to find its inputs: the last walk is what is counted."""

    def __init__(self, model: nn.Module, counts: Counter[str]) -> None:
        super().__init__(model)
        self.counts = counts

    def load(self, index: int) -> None:
        if index == 0:
            self.counts.clear()


def run(monkeypatch: pytest.MonkeyPatch, *methods: Step, in_sequence: bool = False) -> Counter[str]:
    model = tiny_model("llama")
    with counted(model, monkeypatch) as counts:
        store = Counted(model, counts)
        prune_with(store, methods, Unstructured(0.5), tiny_ids(SAMPLES), batch=BATCH, in_sequence=in_sequence)
    return counts


def test_magnitude_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run(monkeypatch, Magnitude())


def test_wanda_runs_every_block_twice_and_the_last_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(monkeypatch, Wanda())
    assert (counts["block 0"], counts["block 1"]) == (2 * BATCHES, BATCHES)
    assert counts["InputNorm.update"] == 2 * GROUPS * BATCHES, "once for every input group and micro-batch"


def test_in_sequence_every_block_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(monkeypatch, Wanda(), in_sequence=True)
    assert (counts["block 0"], counts["block 1"]) == (1, 1)
    assert counts["InputNorm.update"] == 2 * GROUPS


def test_sparsegpt_takes_one_gram_and_one_factor_for_each_input_group(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(monkeypatch, SparseGPT())
    assert (counts["block 0"], counts["block 1"]) == (2 * BATCHES, BATCHES)
    assert counts["InputGram.update"] == 2 * GROUPS * BATCHES
    assert counts["curvature._try_factor"] == 2 * GROUPS


@pytest.mark.parametrize("granularity", ["block", "layer", "output1", "input1"])
def test_barber_runs_every_sub_block_three_times(monkeypatch: pytest.MonkeyPatch, granularity: str) -> None:
    """Pruned, dense, rebuilt; the other sub-block rests meanwhile. Only the probe is run to find the sub-blocks, and
    to try them.
    """
    counts = run(monkeypatch, Magnitude(), Barber(granularity, 0.1))
    runs = {name: count for name, count in counts.items() if name.startswith(("attention", "mlp"))}
    assert runs == {f"{name} {i}": 3 * BATCHES for name in ("attention", "mlp") for i in (0, 1)}
    assert {name: count for name, count in counts.items() if name.startswith("probe block")} == {
        "probe block 0": 2,
        "probe block 1": 2,
    }


def test_no_block_does_work_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(monkeypatch, Wanda(), Barber("layer", 0.1))
    assert (
        counts["attention 0"] - BATCHES == counts["attention 1"] == 4 * BATCHES
    )  # the last block is not advanced after the first pass
