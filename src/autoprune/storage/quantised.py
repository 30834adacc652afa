"""What config.json says of quantised weights: a kind that is dequantised exactly, or one that is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import ModelError

DEFAULT_BLOCK = (128, 128)  # rows and columns under one scale, where config.json does not say
_ORIGINAL = "prune the original float16, bfloat16 or float32 model, which its model card names as base_model"
_REMEDIES = {
    "bitsandbytes": (
        "prune the original model, or write its dequantised weights once, in Python: from transformers import"
        " AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained(MODEL).dequantize().save_pretrained(NEW_DIR)"
    ),
    "gptq": f"GPTQ chose its integers for the dense model's inputs, and zeros would undo that; {_ORIGINAL}",
    "awq": f"AWQ scaled its integers for the dense model's inputs, and zeros would undo that; {_ORIGINAL}",
}


@dataclass(frozen=True)
class Quantisation:
    """How weights are quantised: the ``quant_method`` of config.json, and the rows and columns that one scale is for
    where scales are laid out in blocks.
    """

    method: str
    block: tuple[int, int] = DEFAULT_BLOCK


def quantisation_of(config: Mapping[str, Any], where: Path) -> Quantisation | None:
    """What a config.json, as a dictionary, says; None for weights that are not quantised.

    Raises: ModelError naming the method and the remedy if it is not one that can be dequantised here.
    """
    text = config.get("text_config")
    found = config.get("quantization_config")
    if found is None and isinstance(text, dict):
        found = text.get("quantization_config")
    if found is None:
        return None
    try:
        return _understood(found if isinstance(found, Mapping) else found.to_dict(), where)
    except (AttributeError, TypeError, ValueError) as error:  # entries of other kinds than the format has
        raise ModelError(
            f"{where / 'config.json'} has a quantization_config that can't be understood ({error}); mend it, or remove"
            " it if the weights are not quantised"
        ) from error


def _understood(found: Mapping[str, Any], where: Path) -> Quantisation:
    if not found:
        raise ValueError("it is empty")
    method = str(found.get("quant_method") or "of an unknown method").replace("bitsandbytes_4bit", "bitsandbytes")
    if method in ("fp8", "fbgemm_fp8", "mxfp4"):
        return Quantisation(method, _pair(found.get("weight_block_size")))
    if method == "compressed-tensors":
        weights = [group.get("weights") or {} for group in (found.get("config_groups") or {}).values()]
        if weights and all(w.get("type") == "float" and w.get("num_bits") == 8 for w in weights):
            return Quantisation(method, _pair(weights[0].get("block_structure")))
        method = f"compressed-tensors, {found.get('format') or 'not in FP8'}"
    remedy = _REMEDIES.get(method, _ORIGINAL)
    raise ModelError(
        f"{where / 'config.json'} has a quantization_config ({method}): its weights are quantised in a way that is not"
        f" read here (FP8 and MXFP4 are); {remedy}"
    )


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration for weights that are not quantised any more."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(text := kept.get("text_config"), Mapping):
        kept["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    return kept


def _pair(block: Any) -> tuple[int, int]:
    return (int(block[0]), int(block[1])) if isinstance(block, (list, tuple)) and len(block) == 2 else DEFAULT_BLOCK
