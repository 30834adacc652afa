"""Mixtures of experts against independent computations: who was routed where, per-sample gradients, fallbacks,
files.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from configs import EXPERTS, TOKENS, tiny_config, tiny_ids, tiny_model
from mixtures import experts_of, inputs_of, lonely_expert
from more import MORE_EXPERTS
from runs import BARBER, open_store, prune, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Unstructured
from autoprune.core.statistics import InputGram, InputNorm
from autoprune.errors import ModelError
from autoprune.events import Event, Notice
from autoprune.model import experts
from autoprune.model.anatomy import examine
from autoprune.model.experts import eager_experts
from autoprune.model.observe import InputObserver
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs
from autoprune.steps.base import Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore


class Listed(nn.Module):
    """A block whose experts are modules in a list, beside a layer that sees all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))


def test_experts_of_a_list_are_known_as_such() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Listed()])
    (block,) = examine(model).blocks
    assert block.experts == {"experts.0", "experts.1", "experts.2"}


def routed_tokens(module: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """What each expert receives, read from how the model calls its experts."""
    count = module.num_experts
    if len(args) == 1:  # all tokens for every expert, scaled by the router's score; 0 where the router chose another
        return [rows[rows.abs().sum(-1) > 0] for rows in args[0].view(count, -1, args[0].shape[-1])]
    hidden, chosen = args[:2]
    return [hidden[(chosen == expert).any(-1)] for expert in range(count)]


@pytest.mark.parametrize("name", EXPERTS)
@torch.no_grad()
def test_every_expert_is_seen_with_its_own_tokens(name: str) -> None:
    store = MemoryStore(tiny_model(name))
    inputs, stream = prepare_inputs(store, tiny_ids(), 6, Place())
    block = store.anatomy.blocks[-1]
    hidden = inputs.calls.of(0, 0)(store.anatomy.blocks[0].module, stream[0])
    received: list[list[Tensor]] = []
    experts = experts_of(block)
    handle = experts[0].module.register_forward_pre_hook(
        lambda module, args: received.append(routed_tokens(module, args))
    )
    with eager_experts(store.model), InputObserver(block.layers, (InputNorm,), 6 * 24) as observer:
        inputs.calls.of(0, 1)(block.module, hidden)
    handle.remove()
    groups = {layer.name: group for group in observer.groups for layer in group.layers}
    assert len(experts) == 2 * experts[0].module.num_experts
    for expert in experts:
        tokens = received[0][expert.index]
        assert groups[expert.name].tokens == len(tokens) > 0
        if expert.attribute == "gate_up_proj":
            torch.testing.assert_close(groups[expert.name].statistics[InputNorm].norm, tokens.norm(dim=0))


@torch.no_grad()
def test_the_second_map_of_an_expert_sees_what_the_first_one_makes() -> None:
    model = tiny_model("mixtral")
    block = examine(model).blocks[0]
    module = block.module.mlp.experts
    tokens = torch.randn(40, 32)
    with eager_experts(model), InputObserver(block.layers, (InputGram,), 40) as observer:
        module(tokens, torch.full((40, 1), 2), torch.ones(40, 1))
    gate, up = (tokens @ module.gate_up_proj[2].T).chunk(2, dim=-1)
    middle = nn.functional.silu(gate) * up
    grams = {layer.name: group.statistics[InputGram].gram for group in observer.groups for layer in group.layers}
    assert list(grams) == ["mlp.experts.2.gate_up_proj", "mlp.experts.2.down_proj"]
    torch.testing.assert_close(grams["mlp.experts.2.down_proj"], middle.T @ middle)


@pytest.mark.parametrize("method", [Magnitude(), Wanda(), SparseGPT()], ids=lambda method: type(method).__name__)
def test_an_expert_without_tokens_borrows_the_statistic_of_all(method: Step) -> None:
    results = prune(MemoryStore(lonely_expert()), (method,), tiny_ids())
    layers = {layer.name: layer for result in results for layer in result.layers}
    for name, outcome in layers.items():
        assert 2 * outcome.zeros == outcome.weights
        lonely = ".experts.3." in name and method.needs.statistic is not None
        assert (outcome.notes.get("fallback"), outcome.notes.get("tokens")) == (
            ("all tokens", 0) if lonely else (None, None)
        )


@torch.no_grad()
def test_the_borrowed_statistic_is_the_sum_over_all_experts() -> None:
    model, ids = lonely_expert(), tiny_ids()
    before = copy.deepcopy(model).model.layers[0]
    prune(MemoryStore(model), (Wanda(),), ids)
    weight = before.mlp.experts.gate_up_proj[3].T
    keep = model.model.layers[0].mlp.experts.gate_up_proj[3].T != 0
    dense = lonely_expert()
    tokens = inputs_of(dense, examine(dense).blocks[0], "mlp", ids).reshape(
        -1, 32
    )  # each goes to as many experts as any other
    scores = weight.abs() * tokens.norm(dim=0)
    assert torch.equal(keep, scores >= scores.sort(dim=1).values[:, 16:17])


def test_barber_leaves_an_expert_without_tokens_as_it_was() -> None:
    once, twice = lonely_expert(), lonely_expert()
    prune(MemoryStore(once), (Wanda(),), tiny_ids())
    results = prune(MemoryStore(twice), (Wanda(), replace(BARBER, prune_granularity="block")), tiny_ids())
    same = [
        torch.equal(twice.model.layers[0].mlp.experts.down_proj[e], once.model.layers[0].mlp.experts.down_proj[e])
        for e in range(4)
    ]
    assert same == [False, False, False, True]
    notes = {layer.name: layer.notes for layer in results[0].layers}
    assert notes["model.layers.0.mlp.experts.3.down_proj"] == {"fallback": "all tokens", "tokens": 0, "rebuilt": False}
    assert sum(layer.zeros for layer in results[0].layers) * 2 == sum(layer.weights for layer in results[0].layers)


@pytest.mark.parametrize("name", EXPERTS)
def test_new_weights_reach_the_file_in_its_own_layout(name: str, tmp_path: Path) -> None:
    """SparseGPT changes survivors; what is loaded again is what the pruned model held, bit for bit."""
    saved, result = tmp_path / "dense", tmp_path / "pruned"
    tiny_model(name).save_pretrained(saved)
    written: dict[str, Tensor] = {}
    store = open_store(saved, written, resident=True)
    results = prune(store, (SparseGPT(),), tiny_ids(), SemiStructured(2, 4))
    write_checkpoint(saved, result, {**load_file(saved / "model.safetensors"), **written})
    loaded = AutoModelForCausalLM.from_pretrained(result)
    here, there = store.model.state_dict(), loaded.state_dict()
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)
    for block in examine(loaded).blocks:
        assert all(count_violations(layer.matrix != 0, SemiStructured(2, 4)) == 0 for layer in block.layers)
    assert {layer.notes["precision"] for outcome in results for layer in outcome.layers} <= {"float32", "float64"}


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_survivors_keep_their_stored_bits_when_blocks_run_in_another_precision(name: str, tmp_path: Path) -> None:
    tiny_model(name).to(torch.bfloat16).save_pretrained(tmp_path)
    written: dict[str, Tensor] = {}
    prune(open_store(tmp_path, written, dtype="float32"), (Wanda(), BARBER), tiny_ids())
    original = load_file(tmp_path / "model.safetensors")
    for key, tensor in written.items():
        assert tensor.dtype == original[key].dtype and torch.equal(tensor, original[key] * (tensor != 0))


@pytest.mark.parametrize("name", [*EXPERTS, *MORE_EXPERTS])
def test_routers_and_gates_are_left_alone(name: str) -> None:
    """Outside of attention only they have as many outputs as there are experts (two more in LongCat's, for experts
    that do nothing), or one.
    """
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(tiny_config(name))
    blocks = examine(model).blocks
    parameters = [
        (path, tuple(p.shape))
        for block in blocks
        for path, p in block.module.named_parameters()
        if "attn." not in path
    ]
    deciding = {path for path, shape in parameters if shape in ((1, 32), (4, 32), (6, 32))}
    kept = {path for block in blocks for path, _ in block.unreached}
    assert deciding and deciding <= kept
    assert not {layer.parameter_name for block in blocks for layer in block.layers} & kept


def test_experts_short_of_tokens_are_listed_when_the_run_ends(tmp_path: Path) -> None:
    save_file({"input_ids": tiny_ids()}, tmp_path / "ids.safetensors")
    data = {"calibration_data": tmp_path / "ids.safetensors", "nsamples": 6, "seqlen": TOKENS}
    events: list[Event] = []
    result = autoprune.prune(lonely_expert(), sparsity_ratio=0.5, prune_barber=True, emit=events.append, **data)
    by_all, left, nothing = result.summary.warnings
    assert "exchanged" in nothing, "LLM-Barber's rows are too short for its threshold"
    assert (
        "4 layers of experts were pruned by what all experts saw, for fewer than 32 tokens were sent there:" in by_all
    )
    assert "4 layers of experts were not rebuilt" in left
    for block in (0, 1):
        assert all(f"model.layers.{block}.mlp.experts.3.down_proj (0)" in text for text in (by_all, left))
    assert {by_all, left} <= {event.text for event in events if isinstance(event, Notice)}


def test_barber_leaves_layers_without_gradients_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V3.2's indexer chooses tokens without gradients: beside the scores of the others, its own would all be
    zero. It is left dense as what decides; here it counts as a layer like any other.
    """
    monkeypatch.setattr(experts, "DECIDING", ())
    once, twice = tiny_model("deepseek_v32"), tiny_model("deepseek_v32")
    prune(MemoryStore(once), (Wanda(),), tiny_ids())
    results = prune(MemoryStore(twice), (Wanda(), replace(BARBER, prune_granularity="block")), tiny_ids())
    notes = {layer.name: layer.notes for result in results for layer in result.layers}
    ours, theirs = twice.model.layers[0].self_attn, once.model.layers[0].self_attn
    assert torch.equal(ours.indexer.wq_b.weight, theirs.indexer.wq_b.weight) and not torch.equal(
        ours.o_proj.weight, theirs.o_proj.weight
    )
    assert notes["model.layers.0.self_attn.indexer.wq_b"] == {"rebuilt": False, "gradient": "none"}
    assert sum(layer.zeros for layer in results[0].layers) * 2 == sum(layer.weights for layer in results[0].layers)


def test_a_router_beside_a_list_of_experts_is_left_alone() -> None:
    """Models with code of their own may hold their experts as separate modules."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 3)
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"mlp": Mixture()}) for _ in range(2))

    assert [layer.name for layer in examine(Model()).blocks[0].layers] == [
        "mlp.experts.0",
        "mlp.experts.1",
        "mlp.experts.2",
    ]


@torch.no_grad()
def test_weights_that_are_used_the_other_way_round_are_noticed() -> None:
    model = tiny_model("mixtral")
    expert = experts_of(examine(model).blocks[0])[0]
    wrong = replace(expert, transposed=True)
    with (
        eager_experts(model),
        InputObserver([wrong], (InputNorm,), 8),
        pytest.raises(ModelError, match=r"mlp\.experts\.gate_up_proj"),
    ):
        expert.module(torch.randn(8, 32), torch.zeros(8, 1, dtype=torch.long), torch.ones(8, 1))


def test_the_experts_implementation_comes_back() -> None:
    model = tiny_model("mixtral")
    before = model.get_experts_implementation()
    prune(MemoryStore(model), (Magnitude(),), tiny_ids(), Unstructured(0.25))
    assert model.get_experts_implementation() == before and before[""] != "eager"
