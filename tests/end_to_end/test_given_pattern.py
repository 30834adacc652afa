"""`--model DENSE --pruned_model DIR --prune_barber`: rebuilding the pattern of a model that somebody else pruned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from end_to_end.conftest import Refuse, Run
from end_to_end.tiny import change_weights, is_pruned_layer, same_bits, save_tiny, tensors, tiny_model

LAYER = "model.layers.1.mlp.up_proj.weight"
BARBER: dict[str, Any] = {"prune_barber": True, "threshold": 0.3}
GRANULARITIES = [
    {"prune_granularity": "layer"},
    {"prune_granularity": "block"},
    {"sparsity_type": "2:4", "sparsity_ratio": None},
]


@pytest.fixture
def pruned(run: Run, tiny: Path, tmp_path: Path) -> Path:
    """Wanda's result at 50 % in a directory without a word about autoprune."""
    run(tiny, save_model=tmp_path / "pruned")
    for name in ("autoprune.json", "README.md"):
        (tmp_path / "pruned" / name).unlink()
    return tmp_path / "pruned"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("options", GRANULARITIES, ids=str)
def test_rebuilding_a_saved_result_equals_both_passes_in_one_run(
    run: Run, tiny: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    first = {**options, "prune_method": method}
    run(tiny, save_model=tmp_path / "first", **first)
    run(tiny, save_model=tmp_path / "both", **{**BARBER, **first})
    run(
        tiny,
        save_model=tmp_path / "rebuilt",
        pruned_model=tmp_path / "first",
        **{**BARBER, **options, "sparsity_ratio": None},
    )
    first_, both, rebuilt = (tensors(tmp_path / name) for name in ("first", "both", "rebuilt"))
    assert [name for name in both if not same_bits(both[name], rebuilt[name])] == []
    assert any(not torch.equal(first_[name] != 0, both[name] != 0) for name in both), "LLM-Barber exchanged nothing"


@pytest.mark.parametrize("retain", [False, True])
def test_weights_of_the_given_model_are_kept_where_asked(run: Run, tiny: Path, tmp_path: Path, retain: bool) -> None:
    run(tiny, save_model=tmp_path / "first", prune_method="sparsegpt")
    options = {**BARBER, "threshold": 0, "retain_reconstruction": retain, "prune_granularity": "layer"}
    run(tiny, save_model=tmp_path / "rebuilt", pruned_model=tmp_path / "first", sparsity_ratio=None, **options)
    given, rebuilt, dense = tensors(tmp_path / "first"), tensors(tmp_path / "rebuilt"), tensors(tiny)
    for name in filter(is_pruned_layer, given):
        expected = given[name] if retain else dense[name].where(given[name] != 0, torch.zeros(()))
        assert same_bits(rebuilt[name].abs(), expected.abs()), name


def test_ratio_may_be_left_out_or_agree(run: Run, tiny: Path, pruned: Path, tmp_path: Path) -> None:
    for i, ratio in enumerate((None, 0.5)):
        answer = run(
            tiny,
            save_model=tmp_path / f"out{i}",
            save_ppl=tmp_path / f"ppl{i}",
            pruned_model=pruned,
            sparsity_ratio=ratio,
            **BARBER,
        )
        assert "given+barber" in answer.out
    manifest = json.loads((tmp_path / "out0/autoprune.json").read_text())
    assert manifest["sparsity"] == 0.5
    assert manifest["recipe"]["given"] == {"pruned_model": str(pruned)}
    assert [step["name"] for step in manifest["recipe"]["steps"]] == ["barber"]


def test_ratio_that_the_pattern_does_not_have(refuse: Refuse, tiny: Path, pruned: Path) -> None:
    message = refuse(
        tiny,
        f"--pruned_model {pruned}",
        "has 50.0% zeros, but --sparsity_ratio says 0.6",
        pruned_model=pruned,
        sparsity_ratio=0.6,
        **BARBER,
    )
    assert "drop --sparsity_ratio" in message


def test_model_that_is_not_pruned(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    refuse(
        tiny,
        "model.layers.0.self_attn.q_proj has no zeros",
        "--ignore",
        pruned_model=tmp_path / "copy",
        sparsity_ratio=None,
        **BARBER,
    )


def test_layers_left_dense_can_be_left_out(refuse: Refuse, run: Run, tiny: Path, pruned: Path, tmp_path: Path) -> None:
    change_weights_of_shard(pruned, LAYER, tensors(tiny)[LAYER])
    refuse(tiny, "model.layers.1.mlp.up_proj has no zeros", pruned_model=pruned, sparsity_ratio=None, **BARBER)
    run(
        tiny,
        save_model=tmp_path / "out",
        pruned_model=pruned,
        sparsity_ratio=None,
        ignore="model.layers.1.mlp.up_proj",
        **BARBER,
    )
    assert same_bits(tensors(tmp_path / "out")[LAYER], tensors(tiny)[LAYER])


def change_weights_of_shard(directory: Path, name: str, value: torch.Tensor) -> None:
    """Puts one tensor into the sharded checkpoint that holds it."""
    shard = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"][name]
    (directory / shard).rename(directory / "model.safetensors")
    change_weights(directory, lambda held: held.update({name: value}))
    (directory / "model.safetensors").rename(directory / shard)


def test_wrong_n_m(refuse: Refuse, tiny: Path, pruned: Path) -> None:
    options = {"pruned_model": pruned, "sparsity_type": "2:4", "sparsity_ratio": None, **BARBER}
    refuse(tiny, "model.layers.0.self_attn.q_proj is not 2:4 sparse", "drop --sparsity_type", **options)


def test_other_shapes(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", tiny_model(intermediate_size=48))
    refuse(
        tiny,
        f"--pruned_model {other}",
        "does not fit the dense model",
        "_proj.weight",
        pruned_model=other,
        sparsity_ratio=None,
        **BARBER,
    )


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"]
)
def test_other_ancestry(refuse: Refuse, tiny: Path, pruned: Path, name: str) -> None:
    change_weights_of_shard(pruned, name, tensors(pruned)[name] * 1.01)
    refuse(
        tiny,
        "is no pruned copy of --model",
        f"{name}, which pruning leaves alone, differs",
        pruned_model=pruned,
        sparsity_ratio=None,
        **BARBER,
    )


def test_damaged_copy(refuse: Refuse, tiny: Path, pruned: Path, tmp_path: Path) -> None:
    weight = tensors(pruned)[LAYER]
    weight[0, 0] = float("nan")
    change_weights_of_shard(pruned, LAYER, weight)
    refuse(
        tiny,
        f"--pruned_model {pruned}: model.layers.1.mlp.up_proj holds NaN",
        pruned_model=pruned,
        sparsity_ratio=None,
        **BARBER,
    )
    refuse(tiny, "no such directory", pruned_model=tmp_path / "gone", sparsity_ratio=None, **BARBER)


def test_copy_in_lower_precision(run: Run, tiny: Path, tmp_path: Path) -> None:
    """A float16 copy of a float32 model is still its copy."""
    run(tiny, save_model=tmp_path / "pruned")
    half = save_tiny(tmp_path / "half", tiny_model(dtype=torch.float16))
    change_weights(
        half, lambda held: held.update({name: t.half() for name, t in tensors(tmp_path / "pruned").items()})
    )
    run(tiny, save_model=tmp_path / "out", pruned_model=half, sparsity_ratio=None, **BARBER)
    dense, rebuilt = tensors(tiny), tensors(tmp_path / "out")
    for name, tensor in rebuilt.items():
        assert same_bits(
            tensor, dense[name].where(tensor != 0, torch.zeros(())) if is_pruned_layer(name) else dense[name]
        ), name
