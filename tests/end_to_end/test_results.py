"""What a run writes and says: an ordinary checkpoint with exact zeros, the same numbers everywhere, the same files
every time.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune
from end_to_end.conftest import Run
from end_to_end.tiny import (
    LAYERS,
    SEQLEN,
    Texts,
    change_weights,
    contents,
    is_pruned_layer,
    metadata,
    plain_perplexity,
    same_bits,
    save_tiny,
    tensors,
    tiny_model,
    transformers_log,
)

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"prune_method": "magnitude"},
    "wanda": {"prune_method": "wanda"},
    "sparsegpt": {"prune_method": "sparsegpt"},
    "barber": {"prune_method": "wanda", "prune_barber": True, "prune_granularity": "layer", "threshold": 0.3},
}
by_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


def reported(folder: Path) -> dict[str, Any]:
    """The one JSON file in a folder of reports."""
    (path,) = folder.glob("log_*.json")
    return dict(json.loads(path.read_text()))


@by_method
def test_checkpoint_loads_silently_and_is_worth_what_was_printed(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, options: dict[str, Any]
) -> None:
    answer = run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "ppl", **options)
    with transformers_log() as said, warnings.catch_warnings():
        warnings.simplefilter("error")
        model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        AutoTokenizer.from_pretrained(tmp_path / "out")
    assert said == []
    assert not any(loading.values()), loading
    row = reported(tmp_path / "ppl")
    (result,) = row["perplexity"]
    assert result["perplexity"] == pytest.approx(plain_perplexity(tmp_path / "out", texts.heldout), rel=1e-12)
    assert f"{result['perplexity']:.4g}" in answer.out
    assert result["perplexity"] != pytest.approx(plain_perplexity(tiny, texts.heldout), rel=1e-3)
    assert row["sparsity"] == 0.5
    zeros = {name: int((p == 0).sum()) / p.numel() for name, p in model.named_parameters() if is_pruned_layer(name)}
    assert len(zeros) == LAYERS
    assert set(zeros.values()) == {0.5} or options.get("prune_barber")


@pytest.mark.parametrize(
    "options",
    [{"sparsity_ratio": 0.3}, {"sparsity_ratio": 0.8}, {"sparsity_type": "2:4"}, {"sparsity_type": "3:8"}],
    ids=str,
)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_sparsity_is_exact(run: Run, tiny: Path, tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    if "sparsity_type" in options:
        options = {**options, "sparsity_ratio": None}
    run(tiny, prune_method=method, save_model=tmp_path / "out", **options)
    held = tensors(tmp_path / "out")
    for name in filter(is_pruned_layer, held):
        weight = held[name]
        if "sparsity_type" in options:
            n, m = map(int, options["sparsity_type"].split(":"))
            assert torch.all((weight != 0).view(-1, m).sum(1) == n), name
            continue
        compared = {"magnitude": weight.numel(), "wanda": weight.shape[1], "sparsegpt": weight.numel()}[
            method
        ]  # one column block holds all
        assert int((weight == 0).sum()) == int(options["sparsity_ratio"] * compared + 1e-9) * (
            weight.numel() // compared
        ), name


def _untied(**changes: Any) -> Any:
    return tiny_model("llama", attention_bias=True, mlp_bias=True, **changes)


KINDS = {
    "untied": _untied,
    "tied": lambda: _untied(tie_word_embeddings=True),
    "opt": lambda: tiny_model("opt", ffn_dim=64, word_embed_proj_dim=32),
    "gpt2": lambda: tiny_model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bfloat16": lambda: _untied(dtype=torch.bfloat16),
}
PRUNED_ENDS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("out_proj", "fc1", "fc2", "c_attn", "c_proj", "c_fc"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_everything_but_the_pruned_layers_is_byte_identical(run: Run, tmp_path: Path, kind: str, method: str) -> None:
    model = save_tiny(tmp_path / "model", KINDS[kind]())
    run(model, save_model=tmp_path / "out", prune_method=method)
    before, after = tensors(model), tensors(tmp_path / "out")
    assert set(before) == set(after)
    pruned = [name for name in before if name.endswith(".weight") and name.split(".")[-2] in PRUNED_ENDS]
    assert len(pruned) >= 8
    for name in before:
        if name not in pruned:
            assert same_bits(before[name], after[name]), name
            continue
        assert after[name].dtype == before[name].dtype
        survivors = after[name] != 0
        assert float(survivors.float().mean()) == 0.5, name
        assert method == "sparsegpt" or same_bits(before[name].where(survivors, torch.zeros(())), after[name]), name
    companions = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {name: contents(model)[name] for name in companions} == {
        name: contents(tmp_path / "out")[name] for name in companions
    }


@by_method
def test_two_runs_write_the_same_files(run: Run, tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run(tiny, save_model=tmp_path / "one", **options)
    run(tiny, save_model=tmp_path / "another/two", save_ppl=tmp_path / "ppl", quiet=True, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "another/two")


def test_seed_and_samples_matter(run: Run, tiny: Path, tmp_path: Path) -> None:
    for name, options in {"a": {}, "b": {"seed": 1}, "c": {"nsamples": 7}}.items():
        run(tiny, save_model=tmp_path / name, **options)
    patterns = [
        torch.cat([t.flatten() != 0 for name, t in tensors(tmp_path / name).items() if is_pruned_layer(name)])
        for name in "abc"
    ]
    assert not torch.equal(patterns[0], patterns[1])
    assert not torch.equal(patterns[0], patterns[2])


@by_method
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_streamed_equals_resident(
    tiny: Path, texts: Texts, tmp_path: Path, options: dict[str, Any], tied: bool
) -> None:
    """With save_model one block at a time is in memory; without, all of them: bit for bit the same weights and
    perplexity.
    """
    model = save_tiny(tmp_path / "model", tiny_model(tie_word_embeddings=True)) if tied else tiny
    common = {
        "sparsity_ratio": 0.5,
        "calibration_data": texts.calibration,
        "eval_data": texts.heldout,
        "nsamples": 8,
        "seqlen": SEQLEN,
        **options,
    }
    resident = autoprune.prune(model, **common)
    streamed = autoprune.prune(model, save_model=tmp_path / "out", **common)
    held, state = tensors(tmp_path / "out"), resident.model.state_dict()
    assert set(state) - set(held) <= {"lm_head.weight"}
    assert [name for name, tensor in held.items() if not same_bits(tensor, state[name])] == []
    assert resident.row.perplexity == streamed.row.perplexity
    assert resident.summary.layers == streamed.summary.layers
    assert resident.summary.sub_blocks == streamed.summary.sub_blocks


def test_streamed_perplexity_equals_resident_perplexity(
    tiny: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkpoint larger than the free memory is evaluated block by block; the number is the same to the last bit."""
    from autoprune.run import closing
    from autoprune.run import open as subject

    common = {
        "calibration_data": texts.calibration,
        "eval_data": texts.heldout,
        "nsamples": 8,
        "seqlen": SEQLEN,
        "sparsity_ratio": 0.5,
    }
    whole = autoprune.prune(tiny, save_model=tmp_path / "whole", **common)
    monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.0)
    for batch in (1, 3, 64):
        streamed = autoprune.prune(tiny, save_model=tmp_path / f"{batch}", batch_size=batch, **common)
        assert not closing.reopened(
            streamed.recipe, subject.open_model(streamed.recipe, resident=False), streamed.directory
        ).store.resident
        assert streamed.row.perplexity[0].perplexity == pytest.approx(whole.row.perplexity[0].perplexity, rel=1e-6)
        monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.5)
        resident = autoprune.prune(tiny, save_model=tmp_path / f"resident{batch}", batch_size=batch, **common)
        assert resident.row.perplexity == streamed.row.perplexity
        monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.0)


def test_dense_model_larger_than_memory_is_measured_block_by_block(
    tiny: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is pruned, so nothing need stay in memory; ``--memory`` counts as well."""
    from autoprune.run import open as subject
    from autoprune.run.memory import PROGRAM

    options = {"eval_data": texts.heldout, "seqlen": SEQLEN}
    whole = autoprune.prune(tiny, sparsity_ratio=0, **options)
    assert whole.model is not None
    assert autoprune.prune(tiny, sparsity_ratio=0, memory=f"{PROGRAM + 200_000}", **options).in_memory is None
    monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.0)
    streamed = autoprune.prune(tiny, sparsity_ratio=0, **options)
    assert streamed.in_memory is None
    assert streamed.row.perplexity == whole.row.perplexity


def test_sharded_input_gives_the_same_weights(run: Run, tiny: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(model.glob("*.safetensors"))) > 2
    run(tiny, save_model=tmp_path / "one")
    run(model, save_model=tmp_path / "many")
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert all(same_bits(one[name], many[name]) for name in one | many)
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in many.values())
    assert set(index["weight_map"]) == set(many)
    shards = {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == shards
    assert all(metadata(tmp_path / "many" / name) == {"format": "pt"} for name in shards)


def test_tensors_that_no_module_owns_are_carried_along(run: Run, tmp_path: Path) -> None:
    """Such as rotary buffers in old LLaMA checkpoints, and heads for several tokens at once after the last block."""
    model = save_tiny(tmp_path / "model")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
        "model.layers.7.eh_proj.weight": torch.rand(4, 4),
        "value_head.weight": torch.rand(1, 32, dtype=torch.float64),
        "position_ids": torch.arange(64)[None],
    }
    change_weights(model, lambda held: held.update(extra))
    run(model, save_model=tmp_path / "out")
    after = tensors(tmp_path / "out")
    assert all(same_bits(tensor, after[name]) for name, tensor in extra.items())


def test_ignored_layers_stay_dense(run: Run, tiny: Path, tmp_path: Path) -> None:
    run(tiny, save_model=tmp_path / "out", ignore="model.layers.1.*")
    before, after = tensors(tiny), tensors(tmp_path / "out")
    pruned = {name for name in after if not same_bits(before[name], after[name])}
    assert pruned == {name for name in after if is_pruned_layer(name) and ".layers.0." in name}
    layers = json.loads((tmp_path / "out/autoprune.json").read_text())["layers"]
    assert {layer["name"] + ".weight" for layer in layers} == pruned
