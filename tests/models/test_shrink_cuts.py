"""`autoprune shrink --mlp` and `--experts` on families of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import change_weights, save_tiny, tensors, tiny_model, transformers_log, write_words
from models.configs import CHUNKED, DELTA_NET, GROUPED, MLA, MOE, SLIDING
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.cli.main import main
from autoprune.events import Event, Phase
from autoprune.storage.cuts import Cut, Shorter

Options = dict[str, Any]
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
WIDTHS: dict[str, tuple[dict[str, Any], str, int]] = {  # configuration, the entry that changes, and to what
    "llama": ({}, "intermediate_size", 48),
    "gpt2": (GPT2, "n_inner", 96),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, "ffn_dim", 48),
    "phi3": ({"pad_token_id": 0}, "intermediate_size", 48),
    "qwen3_moe": ({**MOE, "head_dim": 8, "mlp_only_layers": [0, 1]}, "intermediate_size", 48),
    "llama4_text": ({**CHUNKED, "num_local_experts": 4, "interleave_moe_layer_step": 2}, "intermediate_size_mlp", 48),
}
EXPERTS: dict[str, tuple[dict[str, Any], str]] = {
    "mixtral": ({"num_local_experts": 4}, "num_local_experts"),
    "gpt_oss": ({**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}, "num_local_experts"),
    "qwen3_next": ({**MOE, **DELTA_NET, "head_dim": 8}, "num_experts"),
    "deepseek_v3": ({**MLA, **MOE, **GROUPED, "n_group": 1, "topk_group": 1}, "n_routed_experts"),
}


def shrink_tiny(dense: Path, out: Path, text: Path, **options: Any) -> autoprune.ShrinkResult:
    chosen = {"heal": "none", "nsamples": 4, "seqlen": 16, **({"multiple": 16} if "mlp" in options else {}), **options}
    return autoprune.shrink(dense, out, calibration_data=write_words(text, 3000, 0), **chosen)


def autoprune_windows(text: Path, model: Path) -> Tensor:
    """The windows that a run of ``shrink_tiny`` calibrates on."""
    from autoprune.data.windows import calibration_windows
    from autoprune.run.open import load_tokenizer

    return calibration_windows(
        str(text),
        lambda: load_tokenizer(model, False),
        nsamples=4,
        seqlen=16,
        seed=0,
        vocab_size=128,
        datasets_cache_dir=None,
    ).ids


@torch.no_grad()
def _logits(directory: Path) -> Tensor:
    with transformers_log() as said:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    assert said == []
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(3))
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


def _dead_channels(held: dict[str, Tensor]) -> None:
    """A quarter of all channels adds nothing, another one in every block."""
    for name, tensor in held.items():
        if name.endswith(("down_proj.weight", "fc2.weight")):
            tensor[:, int(name.split(".layers.")[1][0]) :: 4] = 0.0
        elif name.endswith("mlp.c_proj.weight"):
            tensor[int(name.split(".h.")[1][0]) :: 4] = 0.0


@pytest.mark.parametrize("kind", WIDTHS)
def test_channels_that_do_nothing_go_first(kind: str, tmp_path: Path) -> None:
    changes, entry, width = WIDTHS[kind]
    dense, out = change_weights(save_tiny(tmp_path / "dense", tiny_model(kind, **changes)), _dead_channels), "out"
    result = shrink_tiny(dense, tmp_path / out, tmp_path / "text.txt", mlp=0.25)
    assert result.dropped == () and result.parameters_after < result.parameters_before
    assert json.loads((tmp_path / "out/config.json").read_text())[entry] == width
    expected = _logits(dense)
    assert float((_logits(tmp_path / "out") - expected).norm() / expected.norm()) < 1e-3
    old, new = tensors(dense), tensors(tmp_path / "out")
    same = [name for name in new if new[name].shape == old[name].shape]
    assert all(torch.equal(new[name], old[name]) for name in same) and len(same) < len(new)
    assert main(["verify", str(tmp_path / "out"), "--model", str(dense)]) == 0


def test_channels_that_lie_in_another_way_are_noticed_before_the_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the two halves of phi3's gate and up projection were neither halves nor pairs."""
    dense = save_tiny(tmp_path / "dense", tiny_model("phi3", pad_token_id=0))

    def other(cut: Cut, part: Shorter, kept: Tensor) -> Tensor:
        return kept if part.times == 1 else torch.cat([kept, kept.flip(0) + cut.old])

    monkeypatch.setattr(Cut, "index", other)
    seen: list[str] = []
    with pytest.raises(autoprune.ModelError, match=r"layers\.0: a narrower MLP does not compute what the wide one"):
        shrink_tiny(dense, tmp_path / "out", tmp_path / "text.txt", mlp=0.25, blocks=1, emit=_phases(seen))
    assert not {"scores of blocks", "writing"} & set(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "text.txt"]


def _phases(seen: list[str]) -> Callable[[Event], None]:
    return lambda event: seen.append(event.name) if isinstance(event, Phase) else None


def test_precisions_of_files_and_of_blocks_may_differ(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", tiny_model(dtype=torch.bfloat16))
    shrink_tiny(dense, tmp_path / "out", tmp_path / "text.txt", mlp=0.5, dtype="float32")
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {torch.bfloat16}


def test_narrow_blocks_are_healed(tmp_path: Path) -> None:
    dense, text = save_tiny(tmp_path / "dense", tiny_model()), tmp_path / "text.txt"
    training = {"heal": "reconstruct", "learning_rate": 0.002, "epochs": 4, "nsamples": 64}
    result = shrink_tiny(dense, tmp_path / "out", text, mlp=0.75, **training)
    assert set(result.healed) == {0, 1} and all(after < before for before, after in result.healed.values())
    record = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]
    assert record["narrower"] == [{"entry": "intermediate_size", "before": 64, "after": 16}]
    assert result.entries == {"intermediate_size": (64, 16)}
    old, new = tensors(dense), tensors(tmp_path / "out")
    assert not any(torch.equal(new[name], old[name]) for name in new if "layers." in name)


def _unused(held: dict[str, Tensor]) -> None:
    """The router never chooses expert 2."""
    for name, tensor in held.items():
        if name.endswith("router.bias"):
            tensor[2] = -1e4


@pytest.mark.filterwarnings("ignore:.*RoPE scaling factor.*")
@pytest.mark.parametrize("by", ["reap", "load"])
def test_an_expert_that_is_never_used_goes_first(by: str, tmp_path: Path) -> None:
    changes, _ = EXPERTS["gpt_oss"]
    dense = change_weights(save_tiny(tmp_path / "dense", tiny_model("gpt_oss", **changes)), _unused)
    shrink_tiny(dense, tmp_path / "out", tmp_path / "text.txt", experts=1, experts_by=by)
    record = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]["blocks"]
    assert [note["experts_gone"] for note in record] == [[2], [2]]
    assert [note["load"][2] for note in record] == [0, 0]
    assert torch.allclose(_logits(tmp_path / "out"), _logits(dense), atol=1e-5)


def test_scores_of_experts_by_hand(tmp_path: Path) -> None:
    """REAP's score and the load of block 0 of a mixture, written down once more without any of the project's code."""
    changes, _ = EXPERTS["mixtral"]
    dense = save_tiny(tmp_path / "dense", tiny_model("mixtral", **changes))
    shrink_tiny(dense, tmp_path / "out", tmp_path / "text.txt", experts=1)
    note = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]["blocks"][0]
    assert note["experts_gone"] == [min(range(4), key=lambda e: note["scores"][e])]
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto").eval()
    seen: list[Tensor] = []
    mixture = model.model.layers[0].mlp
    handle = mixture.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    windows = autoprune_windows(tmp_path / "text.txt", dense)
    with torch.no_grad():
        model(windows, use_cache=False)
        handle.remove()
        x, experts = torch.cat(seen), mixture.experts
        chosen = (x @ mixture.gate.weight.T).softmax(-1).topk(2)
        gates = chosen.values / chosen.values.sum(-1, keepdim=True)
        for expert in range(4):
            rows, places = (chosen.indices == expert).nonzero(as_tuple=True)
            gate, up = (x[rows] @ experts.gate_up_proj[expert].T).chunk(2, -1)
            sizes = ((torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T).norm(dim=-1)
            assert note["load"][expert] == len(rows)
            assert note["scores"][expert] == pytest.approx(float((gates[rows, places] * sizes).mean()), rel=1e-4)


@pytest.mark.parametrize("kind", EXPERTS)
def test_fewer_experts_are_a_model(kind: str, tmp_path: Path) -> None:
    changes, entry = EXPERTS[kind]
    dense = save_tiny(tmp_path / "dense", tiny_model(kind, **changes))
    shrink_tiny(dense, tmp_path / "out", tmp_path / "text.txt", experts=0.25)
    assert json.loads((tmp_path / "out/config.json").read_text())[entry] == 3
    assert _logits(tmp_path / "out").isfinite().all()
    old, new = tensors(dense), tensors(tmp_path / "out")
    for block, note in enumerate(json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]["blocks"]):
        kept = [expert for expert in range(4) if expert not in note.get("experts_gone", [])]
        for name in (name for name in new if f"layers.{block}." in name and name not in note["changed"]):
            assert torch.equal(new[name], old[note.get("moved", {}).get(name, name)])
        for name in (name for name in note["changed"] if "gate.weight" in name or "router" in name):
            assert torch.equal(new[name], old[name][kept])
    assert main(["verify", str(tmp_path / "out"), "--model", str(dense)]) == 0


@pytest.mark.parametrize(
    ("kind", "changes", "options", "why"),
    [
        ("llama", {}, {"mlp": 0.2, "multiple": 64}, "--mlp 0.2 of a width of 64 leaves no smaller multiple of 64"),
        ("llama", {}, {"mlp": 0.95, "multiple": 16}, "leaves no smaller multiple of 16"),
        ("llama", {}, {"experts": 1}, "this model has no experts that could go; give --blocks or --mlp"),
        ("bloom", {"n_layer": 2, "n_head": 4}, {"mlp": 0.25}, "no entry of config.json sets the width of the MLPs"),
        ("mixtral", {"num_local_experts": 4}, {"mlp": 0.25}, "is an expert: the width of experts stays as it is"),
        (
            "mixtral",
            {"num_local_experts": 4},
            {"experts": 3},
            "--experts 3 is 3 of 4, which leaves 1; at least 2 must stay, for every token goes to 2: give 2 or less",
        ),
        ("deepseek_v3", {**MLA, **MOE, **GROUPED}, {"experts": 1}, r"groups of experts first \(n_group\)"),
        (
            "llama4_text",
            {**CHUNKED, "num_local_experts": 4, "interleave_moe_layer_step": 2},
            {"experts": 1},
            "in a way in which nobody can see what each one adds",
        ),
    ],
)
def test_what_is_refused(
    kind: str, changes: dict[str, Any], options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    dense = save_tiny(tmp_path / "dense", tiny_model(kind, **changes))
    with pytest.raises(autoprune.AutoPruneError, match=why):
        shrink_tiny(dense, tmp_path / "out", tmp_path / "text.txt", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "text.txt"]
