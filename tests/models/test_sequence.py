"""`--true_sequential` against the obvious way: run the block anew for every input group, prune that group, go on."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import TOKENS, tiny_ids, tiny_model
from oracles.selection import keep_in_rows
from safetensors.torch import save_file
from torch import Tensor, nn

import autoprune
from autoprune.core.sparsity import Unstructured
from autoprune.errors import RecipeError
from autoprune.model.door import prune_with
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def prune_in_sequence(model: nn.Module, steps: Sequence[Step], ids: Tensor) -> None:
    prune_with(MemoryStore(model), steps, Unstructured(0.5), ids, batch=2, in_sequence=True)


@torch.no_grad()
def wanda_group_by_group(model: nn.Module, ids: Tensor) -> None:
    """LLaMA's groups are written down; every group costs a forward pass of the whole model."""
    for block in model.model.layers:
        for group in GROUPS:
            seen: list[Tensor] = []
            layers = [block.get_submodule(name) for name in group]
            handle = layers[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].flatten(0, 1)))
            model(input_ids=ids, use_cache=False)
            handle.remove()
            norm = torch.cat(seen).double().norm(dim=0)
            for layer in layers:
                keep = keep_in_rows((layer.weight.double().abs() * norm).tolist(), 0.5)
                layer.weight.mul_(torch.tensor(keep))


def test_wanda_equals_the_version_by_hand() -> None:
    dense = tiny_model("llama").requires_grad_(False)
    ours, theirs, usual = copy.deepcopy(dense), copy.deepcopy(dense), copy.deepcopy(dense)
    prune_in_sequence(ours, (Wanda(),), tiny_ids())
    wanda_group_by_group(theirs, tiny_ids())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    prune_with(MemoryStore(usual), (Wanda(),), Unstructured(0.5), tiny_ids(), batch=2)
    assert any(not torch.equal(value, usual.state_dict()[name]) for name, value in ours.state_dict().items()), (
        "it changes something"
    )


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "falcon", "gemma2", "mamba"])
@pytest.mark.parametrize("method", [Wanda(), SparseGPT(), Magnitude()], ids=["wanda", "sparsegpt", "magnitude"])
def test_any_architecture(name: str, method: Step) -> None:
    """Weights that are used as views of themselves are overwritten in time, too."""
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prune_in_sequence(model, (method, Barber("layer", 0.3)), tiny_ids())
    anatomy = MemoryStore(model).anatomy
    layers = {f"{block.name}.{layer.parameter_name}": layer for block in anatomy.blocks for layer in block.layers}
    assert {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])} == set(layers)
    assert all(2 * int((layer.matrix == 0).sum()) == layer.count for layer in layers.values())


def test_what_can_not_be_done_in_sequence_is_refused(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "model")
    save_file({"input_ids": tiny_ids(4)}, tmp_path / "tokens.safetensors")
    options = {
        "calibration_data": tmp_path / "tokens.safetensors",
        "nsamples": 4,
        "seqlen": TOKENS,
        "sparsity_ratio": 0.5,
    }
    with pytest.raises(RecipeError, match=r"--true_sequential can't be used on a mixture of experts.*leave it out"):
        autoprune.prune(tmp_path / "model", true_sequential=True, **options)
    for steps, name in (("wanda,reconstruct", "reconstruct"), ("mixed,wanda", "mixed")):
        with pytest.raises(RecipeError, match=rf"which {name} can't do; leave out one of the two"):
            # The text is not there either, so nothing was read before.
            autoprune.prune("demo", true_sequential=True, steps=steps, sparsity_ratio=0.5, calibration_data="no.txt")


def test_a_first_step_that_looks_at_nothing_does_not_switch_it_off(tmp_path: Path) -> None:
    said: list[object] = []
    weights = {}
    for flag in (False, True):
        options: dict[str, Any] = {"calibration_data": "demo", "nsamples": 4, "seqlen": 32, "sparsity_ratio": 0.5}
        result = autoprune.prune("demo", steps="magnitude,refit", true_sequential=flag, emit=said.append, **options)
        assert result.model is not None
        weights[flag] = result.model.state_dict()
    assert any(not torch.equal(value, weights[True][name]) for name, value in weights[False].items())
    assert not any("--true_sequential" in str(event) for event in said)
    autoprune.prune("demo", prune_method="magnitude", sparsity_ratio=0.5, true_sequential=True, emit=said.append)
    assert any("--true_sequential changes nothing here" in str(event) for event in said)


def test_from_the_front_door(tmp_path: Path) -> None:
    """Streamed to disk with LLM-Barber behind it: the flag is in the record, and changes the result."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    save_file({"input_ids": tiny_ids(4)}, tmp_path / "tokens.safetensors")
    options = {
        "calibration_data": tmp_path / "tokens.safetensors",
        "nsamples": 4,
        "seqlen": TOKENS,
        "sparsity_ratio": 0.5,
    }
    written = {}
    for flag in (False, True):
        result = autoprune.prune(
            tmp_path / "model", true_sequential=flag, prune_barber=True, save_model=tmp_path / f"out-{flag}", **options
        )
        assert result.directory is not None
        record = json.loads((result.directory / "autoprune.json").read_text(encoding="utf-8"))
        assert record["recipe"]["pruning"]["true_sequential"] is flag
        written[flag] = [shard["sha256"] for shard in record["shards"]]
    assert written[False] != written[True]
