"""What `autoprune.json` and the model card say, and that config.json stays what it was."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from end_to_end.tiny import LAYERS, Texts, flags, run_classic, save_tiny, write_words

from autoprune.errors import OutputError
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.results.types import PruningSummary
from autoprune.storage.card import model_card
from autoprune.storage.files import file_sha256
from autoprune.storage.manifest import FORMAT, MANIFEST, Manifest, manifest, provenance
from autoprune.storage.weight_files import INDEX

SUMMARY = PruningSummary(
    (
        LayerOutcome(0, "model.layers.0.mlp.up_proj", 3, 1, 0.25, {"damping": 0.1}),
        LayerOutcome(0, "model.layers.0.mlp.down_proj", 5, 1),
    ),
    (SubBlockOutcome(0, "mlp", 2.0, 1.0, 10, 3, 1),),
    {"prune": 12.5},
    ("something odd",),
)
CALIBRATION = {"source": "c4", "seqlen": 2048, "fingerprint": "abc"}


def about(local: bool = False, calibration: dict[str, Any] | None = CALIBRATION, **options: Any) -> dict[str, Any]:
    recipe = recipe_from_flat({"model": "huggyllama/llama-7b", "sparsity_ratio": 0.5, "seed": 7, **options})
    return provenance(recipe, {"name": "huggyllama/llama-7b", "local": local, "fingerprint": "def"}, calibration)


def card(**options: Any) -> tuple[dict[str, Any], str]:
    """The card's header and its text."""
    _, header, text = model_card(about(**options), SUMMARY, "wanda", "50 %").split("---\n", 2)
    return yaml.safe_load(header), text


def test_manifest_says_what_was_done_to_every_layer() -> None:
    shards: list[dict[str, object]] = [{"name": "model.safetensors", "bytes": 3, "sha256": "0"}]
    others: list[dict[str, object]] = [{"name": "config.json", "bytes": 2, "sha256": "1"}]
    written = json.loads(manifest(about(), SUMMARY, [*shards, *others]))
    assert written["format"] == FORMAT
    assert written["sparsity"] == 0.25
    assert written["layers"][0] == {
        **{"block": 0, "name": "model.layers.0.mlp.up_proj", "weights": 3, "zeros": 1},
        **{"error": 0.25, "notes": {"damping": 0.1}, "sparsity": 0.333333},
    }
    assert written["layers"][1]["error"] is None
    assert written["sub_blocks"][0]["exchanged"] == 1
    assert written["warnings"] == ["something odd"]
    assert written["shards"] == shards
    assert written["files"] == others
    assert written["written"] == ["config.json", "model.safetensors"]
    assert (written["seed"], written["calibration"], written["model"]["fingerprint"]) == (7, CALIBRATION, "def")
    assert {"python", "autoprune", "torch", "transformers", "safetensors"} <= set(written["versions"])


def test_manifest_depends_on_what_was_done_and_not_on_when_or_where_to() -> None:
    elsewhere = {
        "save_model": "x",
        "save_ppl": "y",
        "overwrite": True,
        "quiet": True,
        "eval_data": ["ptb"],
        "batch_size": 3,
    }
    slower = PruningSummary(SUMMARY.layers, SUMMARY.sub_blocks, {"prune": 99.0}, SUMMARY.warnings)
    text = manifest(about(), SUMMARY, [])
    assert manifest(about(**elsewhere), slower, []) == text
    for change in (
        {"seed": 8},
        {"sparsity_ratio": 0.6},
        {"prune_method": "magnitude"},
        {"nsamples": 64},
        {"dtype": "float32"},
        {"ignore": ["*"]},
    ):
        assert manifest(about(**change), SUMMARY, []) != text


def test_card_names_the_original_only_if_the_hub_has_it() -> None:
    header, text = card()
    assert header["base_model"] == "huggyllama/llama-7b"
    assert header["library_name"] == "transformers"
    assert "autoprune" in header["tags"]
    assert "base_model" not in card(local=True)[0]
    for part in (
        "# llama-7b, pruned by wanda (50 %)",
        "25.00% of the weights in the 2 linear layers",
        "c4 (128 windows of 2048 tokens, seed 7)",
    ):
        assert part in text
    assert "| calibration | none |" in card(calibration=None)[1]


def test_card_says_what_was_trained() -> None:
    kept = "norms, biases and the head are those of the original"
    assert kept in card()[1]
    trained = dataclasses.replace(SUMMARY, trained=("model.norm.weight",))
    text = model_card(about(), trained, "wanda+reconstruct", "50 %")
    assert kept not in text
    assert "norms and biases of the blocks were trained on the calibration data" in " ".join(text.split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and what Wanda with LLM-Barber made of it."""
    folder = tmp_path_factory.mktemp("manifest")
    model = save_tiny(folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "note": "kept as it is"}, separators=(" ,", " :  ")))
    (model / "README.md").write_text("the card of the original")
    texts = Texts(write_words(folder / "c.txt", 300, 0), write_words(folder / "h.txt", 100, 1))
    options = {"prune_barber": True, "prune_granularity": "layer", "threshold": 0.3, "seed": 3, "ignore": "*.o_proj"}
    from autoprune.cli.main import classic

    assert classic(flags(model, texts, save_model=folder / "out", quiet=True, **options)) == 0
    return model, folder / "out"


def test_written_manifest_is_true(written: tuple[Path, Path]) -> None:
    _, out = written
    said = json.loads((out / MANIFEST).read_text())
    assert {path.name for path in out.iterdir()} == {*said["written"], MANIFEST}
    shards = {path.name: path for path in out.glob("*.safetensors")}
    assert {shard["name"] for shard in said["shards"]} == set(shards)
    assert {entry["name"] for entry in said["shards"] + said["files"]} == set(said["written"])
    for entry in said["shards"] + said["files"]:
        assert entry["bytes"] == (out / entry["name"]).stat().st_size
        assert entry["sha256"] == file_sha256(out / entry["name"])
    assert len(said["layers"]) == LAYERS - 2
    assert all(0 < layer["error"] < 1 for layer in said["layers"])
    assert {sub["name"] for sub in said["sub_blocks"]} == {"self_attn", "mlp"}
    assert (
        sum(layer["notes"]["grown"] for layer in said["layers"])
        == sum(sub["exchanged"] for sub in said["sub_blocks"])
        > 0
    )
    assert said["recipe"]["calibration"]["seed"] == said["seed"] == said["calibration"]["seed"] == 3
    assert said["calibration"]["sha256"] == file_sha256(out.parent / "c.txt")


def test_config_is_copied_and_says_nothing_of_sparsity(written: tuple[Path, Path]) -> None:
    """A `sparsity_config` or `quantization_config` there would make loaders look for packages that are not needed."""
    model, out = written
    assert (out / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert not {"sparsity_config", "quantization_config", "compression_config"} & set(
        json.loads((out / "config.json").read_text())
    )
    assert (out / INDEX).is_file()


def test_card_is_a_new_one(written: tuple[Path, Path]) -> None:
    text = (written[1] / "README.md").read_text()
    assert "pruned by wanda+barber (layer 0.3) (50 %)" in text
    assert "the card of the original" not in text


def test_a_result_can_be_pruned_again(
    written: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its own manifest and card are not copied into the next result."""
    answer = run_classic(
        capsys, flags(written[1], None, prune_method="magnitude", sparsity_ratio=0.7, save_model=tmp_path / "again")
    )
    assert answer.status == 0, answer.err
    assert json.loads((tmp_path / "again" / MANIFEST).read_text())["recipe"]["pruning"]["sparsity_ratio"] == 0.7


def earlier(directory: Path) -> Path:
    """A result as the first format described it: without the hashes of small files."""
    raw = json.loads((directory / MANIFEST).read_text())
    del raw["files"]
    (directory / MANIFEST).write_text(json.dumps(raw | {"format": 1}))
    return directory


def test_a_result_of_the_first_format_stays_readable(written: tuple[Path, Path], tmp_path: Path) -> None:
    from autoprune.evaluation.audit import audit
    from autoprune.run.labels import labels_of

    model, out = written
    old = earlier(Path(shutil.copytree(out, tmp_path / "old")))
    assert audit(old, model).sound
    assert labels_of(old) == labels_of(out) == ("wanda+barber (layer 0.3)", "50 %")
    assert Manifest.read(old).summary({}).layers == Manifest.read(out).summary({}).layers


def test_a_result_of_the_first_format_is_not_gone_on_with(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = earlier(Path(shutil.copytree(written[1], tmp_path / "old")))
    answer = run_classic(capsys, flags(written[0], None, prune_method="magnitude", save_model=old, resume=True))
    assert answer.status == 2
    assert "it is of an earlier version of autoprune (format 1, now 2)" in answer.err


def test_a_later_format_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"format": FORMAT + 1, "written": []}))
    with pytest.raises(OutputError, match=r"is of format 3, and this version of autoprune reads up to 2"):
        Manifest.read(tmp_path)
