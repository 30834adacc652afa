"""What can't be pruned is refused with the reason, before anything is changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from configs import REFUSED, tiny_ids, tiny_model
from runs import BARBER, open_store, prune
from torch import nn

from autoprune.errors import ModelError
from autoprune.model.anatomy import check_coverage, examine
from autoprune.model.replay import require_replay
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

REASONS = {
    "dbrx": r"only 20\.6% of the block parameters of DbrxForCausalLM can be reached.*experts\.mlp\.w1",
    "gemma3n_text": r"hidden states of shape \(2, 1, 8, 32\) for 1 samples of 8 tokens",
    "hrm_text": r"block 0 is called again or out of turn in one forward pass",
    "xlnet": r"only 42\.7% of the block parameters of XLNetLMHeadModel can be reached.*rel_attn\.q",
    "zamba": (
        r"layers\.1\.shared_transf\.\S+ and model\.layers\.3\.shared_transf\.\S+ are one and the same weights \(9 such"
        r" pairs\)"
    ),
    "zamba2": (
        r"layers\.1\.shared_transformer\.\S+ and model\.layers\.3\.shared_transformer\.\S+ are one and the same"
        r" weights"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("held", [False, True], ids=["on disk", "in memory"])
def test_the_reason_is_named(name: str, held: bool, tmp_path: Path) -> None:
    model = tiny_model(name)
    if not held:
        model.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        store = MemoryStore(model) if held else open_store(tmp_path)
        check_coverage(store.anatomy, allow_partial=False)
        require_replay(store, tiny_ids(2))
    assert re.search(REASONS[name], str(caught.value), re.DOTALL)


def test_blocks_that_share_a_parameter() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(
        ModelError,
        match=(
            r"model\.layers\.0\.mlp\.up_proj\.weight and model\.layers\.1\.mlp\.up_proj\.weight are one and the same"
        ),
    ):
        examine(model)


def test_a_part_that_hands_on_two_tensors_is_no_sub_block() -> None:
    """DBRX's attention returns the residual beside its output; in its place LLM-Barber could put only one of them."""
    reason = (
        r"transformer\.blocks\.0: with what its parts \(norm_attn_norm, ffn\).*the block does not run as"
        r" before.*without that step, such as --prune_barber"
    )
    with pytest.raises(ModelError, match=reason):
        prune(MemoryStore(tiny_model("dbrx")), (Wanda(), BARBER), tiny_ids())


@torch.no_grad()
def test_a_layer_in_no_part_of_its_block_is_named() -> None:
    """The block multiplies its weight without calling it: Wanda sees that, but LLM-Barber can't run it apart."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.spare = nn.ModuleDict({"inner": nn.Linear(32, 32, bias=False)})
        layer.register_forward_hook(lambda module, _, output: output + output @ module.spare["inner"].weight.T)
    prune(MemoryStore(model), (Wanda(),), tiny_ids())
    with pytest.raises(
        ModelError, match=r"model\.layers\.0\.spare\.inner is in no part of its block that runs.*--ignore"
    ):
        prune(MemoryStore(model), (Wanda(), BARBER), tiny_ids())
