"""Models with a language model inside: that is pruned, everything beside it stays byte for byte, and the user
is told.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from configs import TOKENS, WRAPPED, in_bfloat16, tiny_ids, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import autoprune
from autoprune.events import Event, Notice

# By architecture: parts beside the language model, as the model names them or as only the checkpoint does.
BESIDE = {
    "gemma3": ("model.vision_tower (", "model.multi_modal_projector ("),
    "gemma4": ("model.vision_tower (", "model.embed_vision ("),
    "got_ocr2": ("model.vision_tower (", "model.multi_modal_projector ("),
    "llama4": ("vision_model (", "multi_modal_projector ("),
    "qwen3_5": ("model.visual (",),
}


@pytest.fixture(scope="module", params=WRAPPED)
def wrapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The architecture and a model of it, as ``save_pretrained`` writes it, with token ids beside it."""
    directory = tmp_path_factory.mktemp(request.param) / "model"
    in_bfloat16(tiny_model(request.param)).save_pretrained(directory)
    save_file({"input_ids": tiny_ids()}, directory.parent / "ids.safetensors")
    return request.param, directory


@torch.no_grad()
def test_only_the_language_model_changes(wrapped: tuple[str, Path], tmp_path: Path) -> None:
    name, dense = wrapped
    events: list[Event] = []
    data = {"calibration_data": dense.parent / "ids.safetensors", "nsamples": 6, "seqlen": TOKENS}
    result = autoprune.prune(
        dense, sparsity_ratio=0.5, prune_barber=True, save_model=tmp_path / "out", emit=events.append, **data
    )
    (told,) = [event.text for event in events if isinstance(event, Notice) and "left as they are" in event.text]
    assert all(part in told for part in BESIDE[name]), told

    before, after = load_file(dense / "model.safetensors"), {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        after |= load_file(shard)
    assert before.keys() == after.keys()
    changed = {
        key for key, value in before.items() if not torch.equal(value.view(torch.uint8), after[key].view(torch.uint8))
    }
    assert changed and all(
        ".layers." in key and not any(word in key for word in ("vision", "visual", "projector", "norm"))
        for key in changed
    )
    assert result.summary.sparsity == 0.5

    ids = tiny_ids(2)
    models = [
        kind.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
        for kind in (AutoModelForImageTextToText, AutoModelForCausalLM)
    ]
    whole, text = (model.eval()(input_ids=ids, use_cache=False).logits for model in models)
    assert torch.equal(whole, text)


def test_inspect_says_what_is_left_alone(wrapped: tuple[str, Path]) -> None:
    name, dense = wrapped
    seen = autoprune.inspect(dense, seqlen=TOKENS)
    assert all(any(part in told for told in seen.left_alone) for part in BESIDE[name]), seen.left_alone
    assert seen.replay.startswith("exact") and seen.coverage >= 0.9


def test_tensors_that_only_the_checkpoint_has_are_told_in_groups(tmp_path: Path) -> None:
    """But tables of positions, which older checkpoints hold and transformers computes itself, are no news."""
    tiny_model("llama").save_pretrained(tmp_path)
    names = [f"model.layers.{i}.mlp.adapter.{part}" for i in range(2) for part in ("a", "b")] + [
        "audio.up.weight",
        "audio.down.weight",
    ]
    extra = {name: torch.ones(4) for name in [*names, "model.layers.0.self_attn.rotary_emb.inv_freq"]}
    save_file(
        {**load_file(tmp_path / "model.safetensors"), **extra},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    expected = [
        "audio (2 tensors that only the checkpoint has)",
        "model.layers.*.mlp.adapter (4 tensors that only the checkpoint has)",
    ]
    assert sorted(autoprune.inspect(tmp_path, seqlen=TOKENS).left_alone) == expected


def test_a_language_model_alone_leaves_nothing(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    assert autoprune.inspect(tmp_path, seqlen=TOKENS).left_alone == ()
