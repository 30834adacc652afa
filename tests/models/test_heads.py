"""Where values can be turned, found by trying in any architecture: the same function, or a refusal with the reason."""

from __future__ import annotations

import pytest
import torch
from configs import tiny_ids, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from autoprune.core.rotation import orthogonal
from autoprune.errors import ModelError
from autoprune.model.heads import HeadFold, find_heads
from autoprune.storage.store import MemoryStore

# With norms behind sub-blocks or ones that take away the mean, too, where hidden states can't be rotated.
TURNED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "opt", "phi", "cohere", "mixtral", "gpt_oss"]
REFUSED = ["phi3", "gpt2", "gpt_neox", "mamba"]  # queries, keys and values in one layer; no attention


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    return model(tiny_ids(2)).logits


@torch.no_grad()
def _turn(model: PreTrainedModel) -> HeadFold:
    store = MemoryStore(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold = find_heads(store, tiny_ids(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for block, found in zip(store.anatomy.blocks, fold.blocks, strict=True):
        for heads in found:
            head = len(heads.rows[0])
            free = torch.randn(len(heads.rows), head, head, generator=torch.Generator().manual_seed(block.index))
            heads.turn(block, orthogonal(free.double()))
        changed = {n for n, p in block.module.named_parameters() if not torch.equal(p, before[f"{block.name}.{n}"])}
        assert changed == {name for heads in found for name in heads.names(block)}
    return fold


@pytest.mark.parametrize("name", TURNED)
def test_the_turned_model_computes_the_same(name: str) -> None:
    model = tiny_model(name)
    expected = _logits(model)
    fold = _turn(model)
    assert float((_logits(model) - expected).norm() / expected.norm()) < 3e-6
    assert all(len(found) == 1 for found in fold.blocks) and not fold.notices


def test_heads_are_those_of_the_configuration() -> None:
    model = tiny_model("llama")
    (heads,) = find_heads(MemoryStore(model), tiny_ids(1)).blocks[0]
    head = model.config.head_dim
    assert (heads.value, heads.output) == ("self_attn.v_proj", "self_attn.o_proj")
    shape = torch.tensor(heads.columns).shape
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    assert shape == (model.config.num_key_value_heads, group, head)
    assert heads.rows[0] == tuple(range(head)) and heads.columns[0][0] == tuple(range(head))


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=r"^the values of this model's attention can't be rotated: .*between them"):
        find_heads(MemoryStore(tiny_model(name)), tiny_ids(1))


def test_every_block_is_tried_for_itself() -> None:
    """Query heads without a query mix all tokens alike and look like one head; only that block's values stay."""
    model = tiny_model("llama")
    query = model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        query[: len(query) * 3 // 4] = 0
    expected = _logits(model)
    fold = _turn(model)
    assert float((_logits(model) - expected).norm() / expected.norm()) < 3e-6
    usual = find_heads(MemoryStore(tiny_model("llama")), tiny_ids(1)).blocks[1]
    assert fold.blocks[1] == usual and fold.blocks[0] != usual
