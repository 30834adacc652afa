"""Models that can't be pruned: each is named, with what to do, before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from end_to_end.conftest import Refuse, Run, refused
from end_to_end.tiny import (
    BLOCKS,
    Texts,
    change_weights,
    flags,
    run_classic,
    same_bits,
    save_tiny,
    tensors,
    tiny_model,
)

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_missing_directory(refuse: Refuse, tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", f"--model {tmp_path / 'nowhere'}", "no such directory")


def test_file_for_a_directory(refuse: Refuse, texts: Texts) -> None:
    refuse(texts.heldout, f"--model {texts.heldout}", "this is a file; give the directory")


def test_directory_without_checkpoint(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", str(tmp_path / "empty"), "no config.json", "give the directory that holds config.json")


def test_config_without_weights(refuse: Refuse, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refuse(copy, str(copy), "neither model.safetensors nor model.safetensors.index.json")


def test_pickled_weights_are_not_opened_and_converted_as_told(
    refuse: Refuse, run: Run, tiny: Path, copy: Path, tmp_path: Path
) -> None:
    torch.save(tensors(copy), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    message = refuse(copy, str(copy), ".bin", "Then give NEW_DIR")
    told = message.split("in Python: ")[1].split(". Then give")[0]
    exec(told, {"MODEL": copy, "NEW_DIR": tmp_path / "converted"})
    run(tmp_path / "converted", save_model=tmp_path / "out")
    run(tiny, save_model=tmp_path / "expected")
    out, expected = tensors(tmp_path / "out"), tensors(tmp_path / "expected")
    assert out.keys() == expected.keys() and all(same_bits(out[name], expected[name]) for name in out)


def test_weights_without_tensors(refuse: Refuse, copy: Path) -> None:
    change_weights(copy, dict.clear)
    refuse(copy, str(copy), "hold no tensors", "fetch")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_directory_that_may_not_be_read(refuse: Refuse, copy: Path) -> None:
    copy.chmod(0)
    try:
        refuse(copy, str(copy), "permissions")
    finally:
        copy.chmod(0o755)


@pytest.mark.parametrize("text", ["{", '{"model_type": "no-such-architecture"}', '{"model_type": "vit"}', "[]"])
def test_config_that_describes_no_language_model(refuse: Refuse, copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    refuse(copy, str(copy), "config.json")


def test_truncated_weights(refuse: Refuse, copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refuse(copy, str(copy / "model.safetensors"), "truncated", "fetch it again")


def test_weights_that_are_no_safetensors_file(refuse: Refuse, copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refuse(copy, str(copy / "model.safetensors"), "no safetensors file", "fetch it again")


def test_weights_of_another_shape_than_the_config_says(refuse: Refuse, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    refuse(copy, str(copy), "lm_head.weight is stored as 128 x 32", "does not fit", "config.json")


def test_shapes_inside_a_block_are_checked_before_work(refuse: Refuse, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    refuse(copy, str(copy), "model.layers.0.mlp.down_proj.weight is stored as 32 x 64", "does not fit", "config.json")


def test_shapes_of_later_blocks_are_checked_before_work(refuse: Refuse, copy: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    change_weights(copy, lambda held: held.update({name: held[name][:8].clone()}))
    refuse(copy, str(copy), name, "does not fit", "config.json")


def test_missing_tensor_of_a_block(refuse: Refuse, copy: Path) -> None:
    change_weights(copy, lambda held: held.pop("model.layers.1.mlp.up_proj.weight"))
    refuse(copy, str(copy), "model.layers.1.mlp.up_proj.weight", "incomplete")


def test_missing_tensor_outside_the_blocks(refuse: Refuse, copy: Path) -> None:
    change_weights(copy, lambda held: held.pop("model.norm.weight"))
    refuse(copy, str(copy), "model.norm.weight", "incomplete")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The tiny model in several shards."""
    return save_tiny(tmp_path / "sharded", max_shard_size="20KB")


def test_missing_shard(refuse: Refuse, sharded: Path) -> None:
    names = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    assert len(names) > 2
    (sharded / names[1]).unlink()
    refuse(sharded, str(sharded), f"shard {names[1]} is missing", "fetch it again")


@pytest.mark.parametrize("text", ["{", "{}", "null", '{"weight_map": ["a"]}', pytest.param("[" * 100_000, id="deep")])
def test_damaged_index(refuse: Refuse, sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    refuse(sharded, INDEX, "no index of a sharded checkpoint")


def test_index_that_lies(refuse: Refuse, sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.gone.weight"] = index["weight_map"]["model.layers.0.self_attn.q_proj.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    refuse(sharded, INDEX, "model.gone.weight", "fetch the checkpoint again")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_bad_number_in_the_weights(refuse: Refuse, copy: Path, name: str, value: float) -> None:
    change_weights(copy, lambda held: held[name].view(-1)[3].fill_(value))
    for method in ("magnitude", "wanda"):
        refuse(copy, f"tensor {name} holds NaN or infinity", prune_method=method)


def test_quantised_weights(refuse: Refuse, copy: Path) -> None:
    change_weights(copy, lambda held: held.update({name: tensor.to(torch.int8) for name, tensor in held.items()}))
    refuse(copy, str(copy), "I8", "prune the original")


def test_overflowing_activations_name_the_layer(
    capsys: pytest.CaptureFixture[str], texts: Texts, copy: Path, tmp_path: Path
) -> None:
    """Weights are finite, but what they make of the text is not. Seen in block 0, before anything is pruned."""
    change_weights(copy, lambda held: held["model.layers.0.post_attention_layernorm.weight"].fill_(1e30))
    for method in ("wanda", "sparsegpt"):
        answer = run_classic(capsys, flags(copy, texts, prune_method=method, save_model=tmp_path / "out"))
        assert answer.status == 2
        assert "model.layers.0.mlp.gate_proj hold NaN or infinity" in answer.err
        assert "--dtype float32" in answer.err
        assert "Traceback" not in answer.err
        assert not (tmp_path / "out").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_evaluation_names_the_tensor_that_is_nan_before_it_begins(
    capsys: pytest.CaptureFixture[str], texts: Texts, copy: Path, tmp_path: Path
) -> None:
    change_weights(copy, lambda held: held["model.norm.weight"].fill_(float("nan")))
    answer = run_classic(capsys, flags(copy, texts, sparsity_ratio=0, save_ppl=tmp_path / "ppl"))
    refused(answer, "model.norm.weight", "NaN")
    assert "perplexity" not in answer.err
    assert not (tmp_path / "ppl").exists()


@pytest.mark.parametrize("files", [["tokenizer.json", "tokenizer_config.json"], ["tokenizer.json"]])
def test_no_tokenizer(refuse: Refuse, copy: Path, files: list[str]) -> None:
    for name in files:
        (copy / name).unlink()
    refuse(copy, str(copy), "no tokenizer", ".safetensors")


def test_damaged_tokenizer(refuse: Refuse, copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0"')
    refuse(copy, str(copy), "no tokenizer can be read", ".safetensors")


def test_too_little_of_the_model_can_be_reached(
    refuse: Refuse, tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: Texts
) -> None:
    """A tiny mamba holds much of its parameters outside linear maps."""
    sizes = {"state_size": 16, "time_step_rank": 4, "conv_kernel": 8, "hidden_size": 16, "expand": 2}
    model = save_tiny(tmp_path / "mamba", tiny_model("mamba", num_hidden_layers=BLOCKS, **sizes))
    message = refuse(model, "of the block parameters", "at least 90%", "not reached:", "--allow_partial")
    assert "backbone.layers.*.mixer.A_log: " in message
    assert run_classic(capsys, flags(model, texts, allow_partial=True, save_model=tmp_path / "out")).status == 0
    assert any(
        (tensor == 0).float().mean() == 0.5 for name, tensor in tensors(tmp_path / "out").items() if "in_proj" in name
    )


def test_hub_id_without_network(refuse: Refuse) -> None:
    """The tests run with HF_HUB_OFFLINE=1."""
    refuse(
        "someone/some-model", "--model someone/some-model", "can't be reached", "give its directory", "--model demo"
    )


def test_no_network(tmp_path: Path, texts: Texts) -> None:
    """The hub is allowed, but nobody answers: both the model and the texts say which flag takes a local file."""
    program = "import sys; from autoprune.cli.main import classic; sys.exit(classic(sys.argv[1:]))"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-c", program, *flags("someone/some-model", texts)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 2
    assert "--model someone/some-model" in result.stderr
    assert "give its directory" in result.stderr
    assert "Traceback" not in result.stderr


def change_config(directory: Path, **entries: Any) -> Path:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | entries), encoding="utf-8")
    return directory


def test_one_quantised_layer_is_enough(refuse: Refuse, copy: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    change_weights(copy, lambda held: held.update({name: held[name].to(torch.float8_e4m3fn)}))
    refuse(copy, name, "F8_E4M3", "quantised")
    change_weights(copy, lambda held: held.update({name: torch.zeros(32, 32, dtype=torch.int8)}))
    refuse(copy, name, "I8", "quantised")


def test_a_quantization_config_is_enough(refuse: Refuse, copy: Path) -> None:
    refuse(
        change_config(copy, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantization_config (gptq)",
        "prune the original",
    )


@pytest.mark.parametrize(
    "entries",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "64"},
        {"hidden_act": "banana"},
        {"vocab_size": -1},
        {"dtype": "banana"},
    ],
    ids=str,
)
def test_config_entries_that_can_not_be(refuse: Refuse, copy: Path, entries: dict[str, Any]) -> None:
    refuse(change_config(copy, **entries), "config.json")


def test_more_blocks_stored_than_config_says(refuse: Refuse, copy: Path) -> None:
    refuse(change_config(copy, num_hidden_layers=1), "model.layers.1,", "only 1 blocks")


def test_stored_tensors_without_a_place_are_said(run: Run, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_weights(copy, lambda held: held.update({"model.layers.0.self_attn.extra.weight": torch.ones(2)}))
    answer = run(copy)
    assert "left as they are: model.layers.*.self_attn.extra (1 tensors that only the checkpoint has)" in answer.err
