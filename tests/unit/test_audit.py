"""`autoprune verify`: every planted fault is found, named, and alone; a sound directory has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import LAYERS, save_tiny, tiny_model, write_words
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoprune.cli.main import main
from autoprune.errors import OutputError
from autoprune.evaluation.audit import ADDED, Fault, audit, find_dense
from autoprune.events import Event, Notice
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.run.api import prune

ROW = "model.layers.1.mlp.up_proj"  # the layer that faults are planted in
CHANGED = "has another SHA-256 than the manifest says: it was changed after it was written"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("audit") / "dense")


@pytest.fixture(scope="module")
def sound(dense: Path) -> Path:
    """The tiny model at 2:4 as autoprune writes it."""
    text = write_words(dense.parent / "words.txt", 300, 0)
    prune(
        dense,
        prune_method="wanda",
        sparsity_type="2:4",
        calibration_data=text,
        nsamples=4,
        seqlen=16,
        save_model=dense.parent / "pruned",
    )
    return dense.parent / "pruned"


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """A copy to plant faults in."""
    return Path(shutil.copytree(sound, tmp_path / "pruned"))


def shard_of(directory: Path, tensor: str) -> Path:
    """The file that holds a tensor."""
    return directory / json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def plant(directory: Path, tensor: str, change: Callable[[Tensor], object]) -> str:
    """Changes a stored tensor in place; returns the name of its shard."""
    path = shard_of(directory, tensor)
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(held[tensor])
    save_file(held, path, metadata={"format": "pt"})
    return path.name


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest."""
    path = directory / "autoprune.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_sound_directory(sound: Path, dense: Path) -> None:
    report = audit(sound, dense)
    assert report.faults == ()
    assert report.sound
    assert len(report.layers) == LAYERS
    assert all(layer.violations == 0 and 2 * layer.zeros == layer.weights for layer in report.layers)
    assert set(report.hashes) == {path.name for path in sound.glob("*.safetensors")}


def test_one_weight_too_many_in_a_group(copy: Path, dense: Path) -> None:
    """A zero becomes a weight."""

    def spoil(weight: Tensor) -> None:
        weight[3, int((weight[3] == 0).nonzero()[0])] = 0.5

    shard = plant(copy, f"{ROW}.weight", spoil)
    assert set(audit(copy, dense).faults) == {
        Fault(shard, CHANGED),
        Fault(ROW, "has 1 group of 4 with more than 2 non-zeros"),
        Fault(ROW, "has 1,023 zeros, the manifest says 1,024"),
    }


def test_zero_that_moved_to_another_group(copy: Path, dense: Path) -> None:
    """As many zeros as promised, but not where they must be."""

    def spoil(weight: Tensor) -> None:
        row = weight[0]
        row[int((row[:4] == 0).nonzero()[0])] = 0.5
        row[4 + int(row[4:8].nonzero()[0])] = 0.0

    shard = plant(copy, f"{ROW}.weight", spoil)
    assert set(audit(copy, dense).faults) == {
        Fault(shard, CHANGED),
        Fault(ROW, "has 1 group of 4 with more than 2 non-zeros"),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [f"{ROW}.weight", "model.norm.weight"])
def test_one_value_that_is_no_number(copy: Path, where: str, value: float) -> None:
    """In a pruned layer (where a weight stands, so that the zeros are as promised) and outside; without the dense
    model.
    """

    def spoil(weight: Tensor) -> None:
        weight.view(-1)[int(weight.view(-1).nonzero()[0])] = value

    shard = plant(copy, where, spoil)
    assert set(audit(copy).faults) == {Fault(shard, CHANGED), Fault(where, "holds NaN or infinity")}


@pytest.mark.parametrize(
    "name", ["model.layers.0.input_layernorm.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_tensor_that_must_be_the_dense_one(copy: Path, dense: Path, name: str) -> None:
    """One bit differs."""
    shard = plant(copy, name, lambda tensor: tensor.view(torch.int32).view(-1)[:1].bitwise_xor_(1))
    assert set(audit(copy, dense).faults) == {
        Fault(shard, CHANGED),
        Fault(name, "differs from the dense model, though pruning must leave it alone"),
    }
    assert set(audit(copy).faults) == {Fault(shard, CHANGED)}


def test_rewritten_hash_does_not_hide_a_changed_norm(copy: Path, dense: Path) -> None:
    """The files are judged, not the manifest's word."""
    from autoprune.storage.files import file_sha256

    name = "model.norm.weight"
    shard = plant(copy, name, lambda tensor: tensor.view(-1)[:1].add_(1))
    rewrite(
        copy, lambda m: next(e for e in m["shards"] if e["name"] == shard).update(sha256=file_sha256(copy / shard))
    )
    assert [fault.where for fault in audit(copy, dense).faults] == [name]


def test_missing_shard(copy: Path, dense: Path) -> None:
    shard = shard_of(copy, f"{ROW}.weight")
    shard.unlink()
    assert audit(copy, dense).faults == (Fault(shard.name, "is missing"),)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
def test_missing_companion(copy: Path, dense: Path, name: str) -> None:
    (copy / name).unlink()
    assert audit(copy, dense).faults == (Fault(name, "is missing"),)


def test_truncated_shard(copy: Path, dense: Path) -> None:
    shard = shard_of(copy, f"{ROW}.weight")
    shard.write_bytes(shard.read_bytes()[:-1000])
    changed, unreadable = audit(copy, dense).faults
    assert changed == Fault(shard.name, CHANGED)
    assert "can't be loaded" in unreadable.what
    assert shard.name in unreadable.what


def test_shard_that_nobody_promised(copy: Path, dense: Path) -> None:
    save_file({"stranger": torch.zeros(2)}, copy / "model-extra.safetensors")
    assert audit(copy, dense).faults == (Fault("model-extra.safetensors", "is not in the manifest"),)


def test_layer_that_the_model_has_not(copy: Path, dense: Path) -> None:
    rewrite(copy, lambda m: m["layers"].append({"name": "model.layers.9.up_proj", "zeros": 1}))
    assert audit(copy, dense).faults == (
        Fault("model.layers.9.up_proj", "is in the manifest, but the model has no such layer"),
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shards": 1}'])
def test_manifest_that_says_nothing(copy: Path, text: str) -> None:
    (copy / "autoprune.json").write_text(text)
    with pytest.raises(OutputError, match=r"no readable autoprune\.json"):
        audit(copy)


def test_dense_model_is_found_by_the_manifest(copy: Path, dense: Path) -> None:
    said: list[Event] = []
    assert find_dense(copy, None) == dense
    rewrite(copy, lambda m: m["model"].update(name="somebody/gone"))
    assert find_dense(copy, None, said.append) is None
    assert any(isinstance(event, Notice) and "somebody/gone" in event.text for event in said)
    assert find_dense(copy, str(dense)) == dense


def test_model_that_was_pruned_in_memory(tmp_path: Path) -> None:
    """There are no dense files to compare with, and it is sound all the same."""
    out = tmp_path / "out"
    prune(tiny_model(), prune_method="magnitude", sparsity_ratio=0.5, save_model=out)
    report = audit(out, find_dense(out, None))
    assert report.faults == ()
    assert all(layer.violations is None for layer in report.layers)


def test_command_line(copy: Path, dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0 and the hashes; 1 and the faults; 2 if there is nothing to judge by."""
    assert main(["verify", str(copy), "--model", str(dense)]) == 0
    out = capsys.readouterr().out
    assert "sound" in out
    assert json.loads((copy / "autoprune.json").read_text())["shards"][0]["sha256"] in out
    shard_of(copy, f"{ROW}.weight").unlink()
    assert main(["verify", str(copy)]) == 1
    assert "is missing" in capsys.readouterr().out
    (copy / "autoprune.json").unlink()
    assert main(["verify", str(copy)]) == 2
    assert "no readable autoprune.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_changed_file_beside_the_weights_is_named(copy: Path, dense: Path, name: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / name).write_text(json.dumps({**config, "hidden_act": "relu"}) if name == "config.json" else "")
    assert Fault(name, CHANGED) in audit(copy, dense).faults


def test_the_card_may_be_added_to(copy: Path, dense: Path) -> None:
    (copy / "README.md").write_text("what its author adds")
    assert audit(copy, dense).sound


@pytest.mark.parametrize(("name", "changed"), [("adapter_config.json", True), ("chat_template.jinja", False)])
def test_a_file_that_loaders_read_must_not_be_added(copy: Path, dense: Path, name: str, changed: bool) -> None:
    from autoprune.run.labels import labels_of

    (copy / "notes.json").write_text("[]")
    assert audit(copy, dense).sound, "what nobody reads may lie there"
    (copy / name).write_text("{}")
    assert Fault(name, ADDED) in audit(copy, dense).faults
    assert (labels_of(copy)[1] == "changed") is changed, "a perplexity does not depend on a template"


def test_another_model_of_the_same_name_is_not_compared_with(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(copy, lambda raw: raw["model"].update(name="dense"))
    (tmp_path / "here").mkdir()
    save_tiny(tmp_path / "here/dense", tiny_model(initializer_range=0.5))
    monkeypatch.chdir(tmp_path / "here")
    told: list[Event] = []
    assert find_dense(copy, None, told.append) is None
    assert "the dense model 'dense' is not what lies at dense now" in str(told[-1])


def test_a_result_that_was_fine_tuned_in_place_is_not_called_what_it_was(sound: Path, copy: Path) -> None:
    from transformers import AutoModelForCausalLM

    from autoprune.run.labels import labels_of, report_stem

    assert labels_of(sound)[1] == "2:4"
    held = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        held.model.layers[0].mlp.up_proj.weight.add_(0.1)
    held.save_pretrained(copy)
    assert labels_of(copy) == ("wanda, then changed", "changed")
    assert report_stem(recipe_from_flat({"model": str(copy), "sparsity_ratio": 0}), labels_of(copy)) == (
        "eval_wanda-then-changed_changed"
    )


@pytest.mark.parametrize(("file", "changed"), [("config.json", True), ("tokenizer.json", True), ("README.md", False)])
def test_a_result_whose_config_was_edited_is_not_called_what_it_was(copy: Path, file: str, changed: bool) -> None:
    from autoprune.run.labels import labels_of

    (copy / file).write_text((copy / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert labels_of(copy) == (("wanda, then changed", "changed") if changed else ("wanda", "2:4"))


def test_files_of_which_only_half_is_noted(copy: Path, dense: Path) -> None:
    rewrite(copy, lambda raw: raw["files"].pop())
    assert ["by half" in fault.what for fault in audit(copy, dense).faults] == [True]


@pytest.mark.parametrize("whose", ["model", "layer"])
def test_shares_that_the_manifest_states_are_counted(copy: Path, whose: str) -> None:
    def overstate(raw: Any) -> None:
        (raw if whose == "model" else raw["layers"][3])["sparsity"] = 0.7

    rewrite(copy, overstate)
    (fault,) = audit(copy).faults
    assert fault.what == "is zero to 70.0000% by the manifest, whose counts say 50.0000%"
