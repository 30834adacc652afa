"""The model card: README.md of a pruned checkpoint."""

from __future__ import annotations

from typing import Any

from autoprune.results.types import PruningSummary


def model_card(about: dict[str, Any], summary: PruningSummary, label: str, target: str) -> str:
    """The text of the checkpoint's README.md."""
    model, recipe = about["model"], about["recipe"]
    base = f"base_model: {model['name']}\n" if "/" in model["name"] and not model["local"] else ""
    calibration, revision = about["calibration"], recipe["model"].get("revision")
    data = "none"
    if calibration:
        data = (
            f"{calibration['source']} ({recipe['calibration']['nsamples']} windows of {calibration['seqlen']} tokens,"
            f" seed {about['seed']})"
        )
    rest = "Embeddings, norms, biases and the head are those of the original, byte for byte."
    if summary.trained:
        rest = (
            "Embeddings and head are those of the original, byte for byte; kept weights, norms and biases of the"
            " blocks were trained on the calibration data."
        )
    weights = f"\nOf the original, {model['weights']}.\n" if "weights" in model else ""
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
{rest} It was pruned by AutoPrune {about["versions"]["autoprune"]}.
{weights}
| | |
|---|---|
| original | {model["name"]}{f" at {revision}" if revision else ""} |
| method | {label} |
| target | {target} |
| calibration | {data} |

It loads like any other checkpoint: `AutoModelForCausalLM.from_pretrained(DIR)`. The zeros are stored as zeros in
ordinary dense tensors: the files are not smaller and plain matrix products are not faster. What was done to every
layer is in `autoprune.json`.
"""


def shrink_card(about: dict[str, Any], found: dict[str, Any]) -> str:
    """The text of a smaller dense model's README.md."""
    model, healed = about["model"], [note["block"] for note in found["blocks"] if "held_out" in note]
    base = f"base_model: {model['name']}\n" if "/" in model["name"] and not model["local"] else ""
    narrower = "".join(f" {cut['entry']} went from {cut['before']} to {cut['after']}." for cut in found["narrower"])
    trained = f" Blocks {', '.join(map(str, healed))} (old numbers) were trained to make up for it." if healed else ""
    losses = found.get("whole", {}).values()
    together = any(loss["held_out_after"] < loss["held_out_before"] for loss in losses)
    trained += " Then all of them were trained together, towards the original's predictions." if together else ""
    weights = f"\nOf the original, {model['weights']}.\n" if "weights" in model else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- pruning
- autoprune
---

# {model["name"].rsplit("/", 1)[-1]}, made smaller

{len(found["dropped"])} of {len(found["dropped"]) + len(found["blocks"])} blocks went:
{", ".join(map(str, found["dropped"])) or "none"}.{narrower} Of {found["parameters_before"]:,} parameters
{found["parameters_after"]:,} are left.{trained}
{weights}
It loads like any other checkpoint: `AutoModelForCausalLM.from_pretrained(DIR)`. How it was made by AutoPrune
{about["versions"]["autoprune"]} is in `autoprune.json`.
"""
