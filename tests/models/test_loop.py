"""What the loop promises beside numbers: replay is checked, a model in memory is left as it was but for its
weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import tiny_ids, tiny_model
from runs import BARBER, open_store, prune
from torch import Tensor, nn

from autoprune.core.statistics import InputNorm
from autoprune.errors import ModelError, NumericsError
from autoprune.events import Event, Work, silent
from autoprune.model.anatomy import examine
from autoprune.model.observe import InputObserver
from autoprune.model.replay import replay_check, require_replay
from autoprune.run.check import check_model, check_values
from autoprune.run.plan import Subject
from autoprune.steps.barber import Barber
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.wanda import Wanda
from autoprune.storage.ahead import ReadAhead
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.store import MemoryStore


@pytest.mark.parametrize("resident", [True, False])
def test_replay_of_a_checkpoint(tmp_path: Path, resident: bool) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    found = require_replay(open_store(tmp_path, resident=resident), tiny_ids(2))
    assert found.exact and found.difference == 0


def test_a_model_whose_blocks_talk_behind_our_back_is_refused() -> None:
    model = tiny_model("llama")
    first, second = (layer.mlp for layer in model.model.layers)
    said: list[Tensor] = []

    def speak(_: nn.Module, args: Any, output: Tensor) -> None:
        said[:] = [output]

    def listen(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + said[0]

    first.register_forward_hook(speak)
    second.register_forward_hook(listen)
    store = MemoryStore(model)
    found = replay_check(store, tiny_ids(2))
    assert not found.exact and found.block == "model.layers.1" and found.difference > 0.01
    with pytest.raises(ModelError, match=r"model\.layers\.1: run alone.*LlamaForCausalLM"):
        require_replay(store, tiny_ids(2))


def test_what_a_distant_block_says_is_noticed_too() -> None:
    """Every block between the two gives what it gives in the model; the last one reads what the first one left long
    ago.
    """
    model = tiny_model("llama", num_hidden_layers=4)
    said: list[Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: said.__setitem__(slice(None), [output]))
    model.model.layers[3].mlp.register_forward_hook(lambda _m, _a, output: output + said[0])
    assert replay_check(MemoryStore(model), tiny_ids(2)).block == "model.layers.3"


def test_the_check_before_pruning_reads_every_block_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the model's own pass, which judges the values on the way, and for the replay; the first block once more, to
    see how it returns.
    """
    tiny_model("llama", num_hidden_layers=3).save_pretrained(tmp_path)
    store, read = open_store(tmp_path), list[str]()
    subject = Subject("tiny", store, store.skeleton.checkpoint, lambda: pytest.fail("no tokenizer is needed"))
    original = Checkpoint.read

    def counting(self: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
        tensors = original(self, names)
        read.extend(tensors)
        return tensors

    monkeypatch.setattr(Checkpoint, "read", counting)
    events: list[Event] = []
    fingerprint = check_model(subject, tiny_ids(2), events.append)
    times = {name: read.count(name) for name in store.skeleton.checkpoint.shards}
    assert {n for n, count in times.items() if count == 3} == set(store.skeleton.stored_under("model.layers.0"))
    assert {n for n, count in times.items() if count == 1} == set(store.outside)
    assert set(times.values()) == {1, 2, 3}
    assert [(e.done, e.total) for e in events if isinstance(e, Work) and e.phase == "replay check"] == [
        (i + 1, 6) for i in range(6)
    ]
    assert fingerprint == check_values(subject, silent)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_model_in_memory_gathers_no_gradients_and_no_hooks(name: str) -> None:
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prune(MemoryStore(model), (Wanda(), BARBER), tiny_ids())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )
    layers = {f"{block.name}.{layer.parameter_name}" for block in examine(model).blocks for layer in block.layers}
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == layers


@torch.no_grad()
def test_a_weight_that_is_multiplied_without_its_module_is_seen() -> None:
    block = examine(tiny_model("mamba")).blocks[0]
    layer = next(layer for layer in block.layers if layer.name == "mixer.dt_proj")
    x = torch.randn(2, 5, 4)
    with InputObserver([layer], (InputNorm,), 10) as observer:
        layer.module.weight @ x.transpose(1, 2)
    torch.testing.assert_close(observer.groups[0].statistics[InputNorm].norm, x.flatten(0, 1).norm(dim=0))


def test_a_layer_that_never_runs_is_named() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.spare = nn.Linear(8, 8)
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.spare saw no input.*--ignore"):
        prune(MemoryStore(model), (Wanda(),), tiny_ids(2))
    prune(MemoryStore(model), (Magnitude(),), tiny_ids(2))


def test_a_block_that_was_read_ahead_is_the_same(tmp_path: Path) -> None:
    """Where blocks run on a GPU, the next one is read meanwhile; here it is done on the CPU, to see that it changes
    nothing.
    """
    tiny_model("llama").save_pretrained(tmp_path)
    usual: dict[str, Tensor] = {}
    ahead: dict[str, Tensor] = {}
    prune(open_store(tmp_path, usual), (Wanda(), BARBER), tiny_ids())
    store = open_store(tmp_path, ahead)
    taken: list[int] = []

    class Noting(ReadAhead):
        def take(self, index: int) -> dict[str, Tensor] | None:
            found = super().take(index)
            taken.extend([index] if found else [])
            return found

    store._ahead = Noting(store.skeleton.checkpoint)
    prune(store, (Wanda(), BARBER), tiny_ids())
    assert taken == [1]
    assert usual.keys() == ahead.keys() and all(torch.equal(usual[name], ahead[name]) for name in usual)


@pytest.mark.parametrize("granularity", ["block", "layer", "output1", "input1"])
def test_zeros_of_the_dense_model_are_no_survivors(granularity: str) -> None:
    """Padded rows are zero before anything is pruned: an exchange that dropped them would give up sparsity for
    nothing.
    """
    model = tiny_model("llama").requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight[:16] = 0
    store = MemoryStore(model)
    first = prune(store, (Wanda(),), tiny_ids())
    zeros = sum(layer.zeros for result in first for layer in result.layers)
    again = tiny_model("llama").requires_grad_(False)
    for layer in again.model.layers:
        layer.mlp.gate_proj.weight[:16] = 0
    second = prune(MemoryStore(again), (Wanda(), Barber(granularity, 0.5)), tiny_ids())
    assert sum(sub.exchanged for result in second for sub in result.sub_blocks) > 0
    assert sum(layer.zeros for result in second for layer in result.layers) == zeros
