"""Results whose norms were trained beside the weights: what the record, the card and the audit say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import autoprune
from autoprune.errors import ModelError, RecipeError
from autoprune.evaluation.audit import audit
from autoprune.storage.locate import DEMO
from autoprune.storage.manifest import Manifest

RUN: dict[str, Any] = {
    "calibration_data": "demo",
    "nsamples": 6,
    "seqlen": 32,
    "batch_size": 1,
    "sparsity_type": "2:4",
    "reconstruct_dtype": "float32",
}


def test_verify_knows_what_was_trained(tmp_path: Path) -> None:
    result = autoprune.prune("demo", steps="wanda,reconstruct", epochs=2, save_model=tmp_path / "out", **RUN)
    trained = Manifest.read(tmp_path / "out").trained
    assert "model.layers.0.input_layernorm.weight" in trained
    assert result.summary is not None and result.summary.trained == trained
    report = audit(tmp_path / "out", DEMO)
    assert report.sound, report.faults
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (
        "norms and biases of the blocks were trained on the calibration data" in card
        and "without training" not in card
    )
    errors = [layer.error for layer in result.summary.layers]
    before = autoprune.prune("demo", steps="wanda", **RUN).summary
    assert before is not None and errors != [layer.error for layer in before.layers], "errors are those of the end"


def test_a_changed_norm_that_was_not_trained_is_still_a_fault(tmp_path: Path) -> None:
    autoprune.prune("demo", steps="wanda,refit", save_model=tmp_path / "out", **RUN)
    assert Manifest.read(tmp_path / "out").trained == ()
    assert audit(tmp_path / "out", DEMO).sound
    assert "byte for byte" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_trained_result_is_trained_further_with_its_norms(tmp_path: Path) -> None:
    first, again, norm = tmp_path / "first", tmp_path / "again", "model.layers.3.input_layernorm.weight"
    autoprune.prune("demo", steps="wanda,reconstruct", epochs=1, save_model=first, **RUN)
    given: dict[str, Any] = {**RUN, "pruned_model": first}
    # At a rate that moves nothing the result is what was given, norms and all.
    autoprune.prune("demo", steps="reconstruct", epochs=1, learning_rate=1e-30, save_model=again, **given)
    old, new = ({k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()} for d in (first, again))
    dense = {k: v for f in DEMO.glob("*.safetensors") for k, v in load_file(f).items()}
    assert not torch.equal(new[norm], dense[norm]), "the norm is the trained one"
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert Manifest.read(again).trained == Manifest.read(first).trained
    assert audit(again, DEMO).sound
    with pytest.raises(
        RecipeError, match=r"were trained beside its weights .* go on with reconstruct or distill alone"
    ):
        autoprune.prune("demo", steps="refit", **given)
    (first / "autoprune.json").unlink()
    with pytest.raises(ModelError, match=r"differs. Norms and biases may differ only where"):
        autoprune.prune("demo", steps="reconstruct", **given)


@pytest.mark.parametrize("steps", ["wanda,reconstruct", "auto", "allocate,wanda"])
def test_stopped_and_resumed_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str) -> None:
    options = {**RUN, "steps": steps, "epochs": 1, "auto_tries": "wanda+refit,mixed+wanda"}
    if "allocate" in steps:
        options |= {"sparsity_type": "unstructured", "sparsity_ratio": 0.7}
        options |= {"allocation": "divergence", "divergence_samples": 2}
    autoprune.prune("demo", save_model=tmp_path / "whole", **options)
    from autoprune.storage import shards

    own, written = shards.CheckpointWriter.write_block, []

    def stops(self: Any, index: int, tensors: Any) -> None:
        if index == 3:
            raise KeyboardInterrupt
        written.append(index)
        own(self, index, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(shards.CheckpointWriter, "write_block", stops)
        with pytest.raises(KeyboardInterrupt):
            autoprune.prune("demo", save_model=tmp_path / "parts", **options)
    assert written == [0, 1, 2]
    autoprune.prune("demo", save_model=tmp_path / "parts", resume=True, **options)
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        other = load_file(tmp_path / "parts" / file.name)
        assert all(torch.equal(value, other[name]) for name, value in load_file(file).items())
    whole, parts = (Manifest.read(tmp_path / name).raw for name in ("whole", "parts"))
    assert whole["layers"] == parts["layers"] and whole.get("surveys") == parts.get("surveys")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": "wanda,reconstruct", "batch_size": 6}, "give a smaller --batch_size"),
        ({"steps": "wanda,reconstruct,barber"}, "put reconstruct last"),
        ({"steps": "wanda,reconstruct,sparsegpt"}, "put reconstruct last"),
        ({"steps": "auto", "auto_tries": "wanda+reconstruct"}, "put it behind auto"),
        ({"steps": "wanda,mixed"}, "must come before the steps that prune"),
        ({"steps": "wanda,barber", "pruned_model": "x"}, "--pruned_model gives one"),
        ({"steps": "auto", "auto_tries": "wanda+barber-outpt1-0.1"}, "can't be read"),
        ({"steps": "auto", "auto_tries": "foo"}, "--auto_tries 'foo' is unknown"),
    ],
)
def test_what_can_not_be_done_is_refused_before(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        autoprune.prune("demo", **{**RUN, **options})
