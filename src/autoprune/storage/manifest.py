"""Provenance: what ``autoprune.json`` and the model card say about how a checkpoint was made."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import version
from typing import Any

from autoprune.recipe.recipe import CACHES, Recipe
from autoprune.results.codec import dump_json, to_jsonable
from autoprune.results.types import PruningSummary

PACKAGES = ("autoprune", "torch", "transformers", "safetensors")
NOT_PROVENANCE = (
    "output",
    "run",
    "evaluation",
    "zeroshot",
)  # where results go does not change them: two runs give identical files


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def provenance(recipe: Recipe, model: dict[str, Any], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """What a run depends on: recipe, versions, model and calibration tokens."""
    chosen = {group: options for group, options in recipe.to_dict().items() if group not in NOT_PROVENANCE}
    for group, name in CACHES:
        chosen[group] = {key: value for key, value in chosen[group].items() if key != name}
    return {
        "recipe": chosen,
        "versions": versions(),
        "seed": recipe.calibration.seed,
        "model": model,
        "calibration": calibration,
    }


def manifest(
    about: dict[str, Any],
    summary: PruningSummary,
    shards: list[dict[str, object]],
    written: list[str],
    *,
    delete: bool = False,
) -> str:
    """The text of ``autoprune.json``; no times and no places of output or caches, so that it is the same for the same
    run.

    ``delete``: the run will remove its result in the end; should it be stopped before, the next one knows that it may.
    """
    layers = [to_jsonable(layer) | {"sparsity": round(layer.sparsity, 6)} for layer in summary.layers]
    document = {
        "format": 1,
        **about,
        "sparsity": summary.sparsity,
        "layers": layers,
        "sub_blocks": [dataclasses.asdict(sub) for sub in summary.sub_blocks],
        "warnings": list(summary.warnings),
        "shards": shards,
        "written": sorted(written),
        **({"delete": True} if delete else {}),
    }
    return dump_json(document)


def model_card(about: dict[str, Any], summary: PruningSummary, label: str, target: str) -> str:
    """The text of the checkpoint's README.md."""
    model, recipe = about["model"], about["recipe"]
    base = f"base_model: {model['name']}\n" if "/" in model["name"] and not model["local"] else ""
    calibration = about["calibration"]
    data = "none"
    if calibration:
        data = (
            f"{calibration['source']} ({recipe['calibration']['nsamples']} windows of {calibration['seqlen']} tokens,"
            f" seed {about['seed']})"
        )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- pruning
- sparse
- autoprune
---

# {model["name"].rsplit("/", 1)[-1]}, pruned by {label} ({target})

{summary.sparsity:.2%} of the weights in the {len(summary.layers)} linear layers of its blocks are exactly zero.
Embeddings, norms, biases
and the head are those of the original, byte for byte. It was pruned in one shot, without training, by AutoPrune
{about["versions"]["autoprune"]}.

| | |
|---|---|
| original | {model["name"]} |
| method | {label} |
| target | {target} |
| calibration | {data} |

It loads like any other checkpoint: `AutoModelForCausalLM.from_pretrained(DIR)`.
The zeros are stored as zeros in ordinary
dense tensors: the files are not smaller and plain matrix products are not faster. What was done to every layer is in
`autoprune.json`.
"""
