"""What `autoprune.json` and the model card say, and that config.json stays what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from end_to_end.tiny import LAYERS, Texts, flags, run_classic, save_tiny, write_words

from autoprune.recipe.recipe import recipe_from_flat
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.results.types import PruningSummary
from autoprune.storage.checkpoint import INDEX
from autoprune.storage.manifest import manifest, model_card, provenance
from autoprune.storage.writer import MANIFEST, file_sha256

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
    written = json.loads(manifest(about(), SUMMARY, shards, ["model.safetensors", "config.json"]))
    assert written["format"] == 1
    assert written["sparsity"] == 0.25
    assert written["layers"][0] == {
        **{"block": 0, "name": "model.layers.0.mlp.up_proj", "weights": 3, "zeros": 1},
        **{"error": 0.25, "notes": {"damping": 0.1}, "sparsity": 0.333333},
    }
    assert written["layers"][1]["error"] is None
    assert written["sub_blocks"][0]["exchanged"] == 1
    assert written["warnings"] == ["something odd"]
    assert written["shards"] == shards
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
    text = manifest(about(), SUMMARY, [], [])
    assert manifest(about(**elsewhere), slower, [], []) == text
    for change in (
        {"seed": 8},
        {"sparsity_ratio": 0.6},
        {"prune_method": "magnitude"},
        {"nsamples": 64},
        {"dtype": "float32"},
        {"ignore": ["*"]},
    ):
        assert manifest(about(**change), SUMMARY, [], []) != text


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
    for shard in said["shards"]:
        assert shard["bytes"] == shards[shard["name"]].stat().st_size
        assert shard["sha256"] == file_sha256(shards[shard["name"]])
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
    assert "pruned by wanda+barber (output1 0.01) (50 %)" in text
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
