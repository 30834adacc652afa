"""Every architecture, on a tiny random model: found, replayed bit for bit, pruned, saved; no code per family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from configs import DENSE, EXPERTS, tiny_ids, tiny_model
from runs import BARBER, open_store, prune, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from autoprune.core.outcome import LayerOutcome
from autoprune.core.problem import Method
from autoprune.methods.wanda import Wanda
from autoprune.model.activations import replaced_forward
from autoprune.model.anatomy import check_coverage, examine
from autoprune.model.pipeline import prepare_inputs
from autoprune.model.replay import replay_check
from autoprune.model.stream import Place
from autoprune.storage.stores import CheckpointStore


@pytest.fixture(scope="module", params=[*DENSE, *EXPERTS])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the architecture, as ``save_pretrained`` writes it."""
    directory = tmp_path_factory.mktemp(request.param.replace("/", "-"))
    tiny_model(request.param).save_pretrained(directory)
    return directory


@torch.no_grad()
def logits_of_replay(store: CheckpointStore, ids: Tensor) -> Tensor:
    """Blocks one by one on the recorded arguments, then final norm and head."""
    inputs, stream = prepare_inputs(store, ids, len(ids), Place())
    hidden = stream[0]
    for block in store.anatomy.blocks:
        store.load(block.index)
        hidden = inputs.calls.of(0, block.index)(block.module, hidden)
        store.release(block.index)
    modules = [block.module for block in store.anatomy.blocks]
    with replaced_forward(modules, [lambda *_args, **_kwargs: inputs.mirror.wrap(hidden)] * len(modules)):
        return store.logits(ids)


def test_the_anatomy_covers_the_blocks(saved: Path) -> None:
    anatomy = open_store(saved).anatomy
    assert len(anatomy.blocks) == len({id(block.module) for block in anatomy.blocks}) >= 2
    assert all(block.layers for block in anatomy.blocks)
    check_coverage(anatomy, allow_partial=False)
    for block in anatomy.blocks:
        assert block.reached + sum(count for _, count in block.unreached) == block.parameters


@torch.no_grad()
def test_replay_is_exact(saved: Path) -> None:
    ids = tiny_ids(3)
    theirs = AutoModelForCausalLM.from_pretrained(saved).eval()(input_ids=ids, use_cache=False).logits
    assert torch.equal(logits_of_replay(open_store(saved), ids), theirs)
    assert replay_check(open_store(saved), ids).exact


@pytest.mark.parametrize("methods", [(Wanda(),), (Wanda(), BARBER)], ids=["wanda", "wanda+barber"])
def test_pruned_written_and_loaded_again(saved: Path, methods: tuple[Method, ...], tmp_path: Path) -> None:
    written: dict[str, Tensor] = {}
    store = open_store(saved, written)
    results = prune(store, methods, tiny_ids())
    if BARBER in methods:
        assert {len(result.sub_blocks) for result in results} == {1 if store.model.config.model_type == "mamba" else 2}
    outcomes = {layer.name: layer for result in results for layer in result.layers}
    assert set(outcomes) == {block.full_name(layer) for block in store.anatomy.blocks for layer in block.layers}
    for outcome in outcomes.values():
        assert 2 * outcome.zeros == outcome.weights, outcome
        assert outcome.error is not None and 0 < outcome.error < 1, outcome

    original = load_file(saved / "model.safetensors")
    assert set(written).isdisjoint(store.outside) and {*written, *store.outside} == set(original)
    write_checkpoint(saved, tmp_path, {**original, **written})
    check_parameters(saved, tmp_path, outcomes)


def check_parameters(dense: Path, pruned: Path, outcomes: Mapping[str, LayerOutcome]) -> None:
    """Loaded by transformers, layers hold the stated zeros and the dense survivors; everything else is as it was."""
    before, after = (AutoModelForCausalLM.from_pretrained(directory) for directory in (dense, pruned))
    layers = set()
    for ours, theirs in zip(examine(after).blocks, examine(before).blocks, strict=True):
        for layer, dense_layer in zip(ours.layers, theirs.layers, strict=True):
            keep = layer.matrix != 0
            assert int((~keep).sum()) == outcomes[ours.full_name(layer)].zeros
            assert torch.equal(layer.matrix, dense_layer.matrix * keep)
            layers.add(f"{ours.name}.{layer.parameter_name}")
    others = {name: p for name, p in before.state_dict().items() if name not in layers}
    assert others and all(torch.equal(after.state_dict()[name], value) for name, value in others.items())
