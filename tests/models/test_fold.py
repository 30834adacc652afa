"""A rotation of the residual stream, folded into the weights: the same function, or a refusal with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from configs import in_bfloat16, tiny_ids, tiny_model
from runs import open_store
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from autoprune.core.rotation import RotationTerm, Schedule, learn_rotation, orthogonal
from autoprune.errors import ModelError
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.fold import Fold, Norm, Seams, fold_block, fold_ends, folded_names, matrices, rotation_terms
from autoprune.model.layers import Layer
from autoprune.model.seams import find_fold
from autoprune.model.turning import neutral_weight
from autoprune.storage.store import MemoryStore

DENSE = ["llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "gemma", "lfm2", "mamba"]
EXPERTS = ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v3", "qwen3_next", "ernie4_5_moe"]
BEHIND = r"layers\.0\.\w+ stands behind a sub-block"
MEAN = r"\(\w*LayerNorm\w*\) takes away the mean, which a rotation moves"
REFUSED = {
    "gemma2": BEHIND,
    "gemma3_text": BEHIND,
    "olmo2": BEHIND,
    "glm4": BEHIND,
    "exaone4": BEHIND,
    "opt/projected": BEHIND,
    "opt": MEAN,
    "gpt2": MEAN,
    "gpt_neox": MEAN,
    "phi": MEAN,
    "cohere": MEAN,
    "olmo": MEAN,
    "nemotron": r"\(NemotronLayerNorm1P\)",
    "doge": r"layers\.0, turned, gives other hidden states than before \(by 0\.\d+ of their size\)",
    "nanochat": r"what enters its first block is not the embedding of the tokens",
    "gemma3": r"what model\.vision_tower adds to the hidden states",
    "xglm": r"layers\.0 does not run in float64",
}


def _rotation(width: int) -> Tensor:
    return orthogonal(torch.randn(width, width, generator=torch.Generator().manual_seed(7), dtype=torch.float64))


@torch.no_grad()
def _turn(model: PreTrainedModel, rotation: Tensor | None = None) -> Fold:
    """Finds and folds; checks on the way that nothing changed before, and nothing then but what was announced."""
    store = MemoryStore(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold = find_fold(store, tiny_ids(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rotation = _rotation(fold.width) if rotation is None else rotation
    for block, seams in zip(store.anatomy.blocks, fold.blocks, strict=True):
        fold_block(block, seams, rotation)
        changed = {
            name for name, p in block.module.named_parameters() if not torch.equal(p, before[f"{block.name}.{name}"])
        }
        assert changed <= set(folded_names(block, seams))
    fold_ends(model, fold.ends, rotation)
    return fold


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    return model(tiny_ids(2)).logits


@pytest.mark.parametrize("tied", [False, True], ids=["two matrices", "tied"])
@pytest.mark.parametrize("name", [*DENSE, *EXPERTS])
def test_the_turned_model_computes_the_same(name: str, tied: bool) -> None:
    model = tiny_model(name, tie_word_embeddings=tied)
    expected = _logits(model)
    fold = _turn(model)
    assert float((_logits(model) - expected).norm() / expected.norm()) < 3e-6
    assert fold.ends.tied == tied and len(fold.notices) == tied


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_named(name: str) -> None:
    with pytest.raises(
        ModelError,
        match=rf"^the hidden states of this model can't be rotated: .*{REFUSED[name]}.*; leave the rotation out$",
    ):
        find_fold(MemoryStore(tiny_model(name)), tiny_ids(1))


def test_a_tied_model_is_saved_as_two_matrices(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    expected = _logits(model)
    fold = _turn(model)
    assert "the model grows by 0.0 MiB" in fold.notices[0]
    model.tie_weights()  # what loading does: the configuration no longer asks for it
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not again.config.tie_word_embeddings
    assert torch.allclose(_logits(again), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_block_by_block_from_disk(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    store = open_store(tmp_path)
    fold = find_fold(store, tiny_ids(1))
    assert fold == find_fold(MemoryStore(model), tiny_ids(1))
    assert not any(store.is_loaded(block.index) for block in store.anatomy.blocks)
    _turn(model)
    for block, seams in zip(store.anatomy.blocks, fold.blocks, strict=True):
        store.load(block.index)
        fold_block(block, seams, _rotation(fold.width))
        assert all(
            torch.equal(p, model.get_parameter(f"{block.name}.{n}")) for n, p in block.module.named_parameters()
        )
        store.release(block.index)


def _observed(model: PreTrainedModel, fold: Fold) -> list[list[RotationTerm]]:
    """Every block's terms: Grams are taken with forward hooks, one for each norm and each writer."""
    found = []
    for block, seams in zip(MemoryStore(model).anatomy.blocks, fold.blocks, strict=True):
        by_norm: dict[str, Tensor] = {}
        grams: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        for name, layer in matrices(block).items():
            x: list[Tensor] = []
            handle = layer.module.register_forward_hook(
                lambda _m, args, _y, x=x: x.append(args[0].detach().flatten(0, -2))
            )
            _logits(model)
            handle.remove()
            if norm := seams.readers.get(name):
                grams[name] = by_norm.setdefault(norm.name, x[0].T @ x[0])
            else:
                squares[name] = x[0].square().sum(0)
        found.append(rotation_terms(block, seams, grams, squares))
    return found


def test_from_a_survey_to_a_turned_model() -> None:
    """With the norms folded, what is learned from holds for the turned model too: importance is as foretold."""
    model = tiny_model("llama")
    expected = _logits(model)
    fold = _turn(model, torch.eye(32, dtype=torch.float64))
    surveyed = _observed(model, fold)
    assert [tuple(t.weight.shape) for t in surveyed[0]] == [(64, 32), (128, 32), (32, 32), (32, 64)]
    learned = learn_rotation(
        32, 2, lambda index: surveyed[index], Schedule(40, 0.01, 2), torch.Generator().manual_seed(0)
    )
    assert learned.entropies[-1] < learned.entropies[0]
    fold = _turn(model, learned.matrix)
    assert torch.allclose(_logits(model), expected, atol=1e-5)
    turned = _observed(model, fold)
    for before, after in zip(
        (t for terms in surveyed for t in terms), (t for terms in turned for t in terms), strict=True
    ):
        foretold = before.importance(learned.matrix.float())
        assert torch.allclose(after.importance(torch.eye(32)), foretold, rtol=1e-3, atol=1e-4 * float(foretold.max()))


@torch.no_grad()
def test_weights_are_rounded_once() -> None:
    model = in_bfloat16(tiny_model("llama"))
    block = model.model.layers[0]
    q, o, norm = (
        block.self_attn.q_proj.weight.clone(),
        block.self_attn.o_proj.weight.clone(),
        block.input_layernorm.weight.clone(),
    )
    _turn(model)
    rotation = _rotation(len(norm))
    assert torch.equal(block.self_attn.q_proj.weight, ((q.double() * norm.double()) @ rotation).bfloat16())
    assert torch.equal(block.self_attn.o_proj.weight, (rotation.T @ o.double()).bfloat16())
    assert torch.equal(block.input_layernorm.weight, torch.ones_like(norm))


class _Half(nn.Module):
    """A norm, a map to somewhere, and back into the stream, with biases; exact in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
        nn.init.normal_(self.norm.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(torch.relu(self.up(self.norm(hidden))))


@torch.no_grad()
def test_in_float64_it_is_exact() -> None:
    torch.manual_seed(0)
    module = _Half().double()
    block = BlockAnatomy(0, "blocks.0", module, (Layer("up", module.up), Layer("down", module.down)), 0, ())
    hidden, rotation = torch.randn(1, 5, 6, dtype=torch.float64), _rotation(6)
    expected = module(hidden) @ rotation
    fold_block(block, Seams({"up": Norm("norm")}, ("down",)), rotation)
    assert float((module(hidden @ rotation) - expected).abs().max()) < 1e-12
    assert [*matrices(block)] == ["up", "down"]


class _OnePlus(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (x.shape[-1],)) * (1 + self.weight)


class _Sine(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (x.shape[-1],)) * self.weight.sin()


@torch.no_grad()
def test_what_a_norm_does_with_its_weight() -> None:
    like = torch.zeros(1, 6, dtype=torch.float64)
    for norm, neutral in ((nn.RMSNorm(6), 1.0), (_OnePlus(6), 0.0), (nn.RMSNorm(6, elementwise_affine=False), None)):
        assert neutral_weight(norm, "norm", like) == neutral
    sine = _Sine(6)
    nn.init.normal_(sine.weight)
    with pytest.raises(ModelError, match="does more than divide by the length and multiply by its weight"):
        neutral_weight(sine, "norm", like)
    with pytest.raises(ModelError, match="does not turn as hidden states do"):
        neutral_weight(nn.Tanh(), "norm", like)
