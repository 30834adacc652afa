"""Every family of decoders that the installed transformers has: a tiny configuration of each, and what autoprune says
of it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from configs import DENSE, EXPERTS, REFUSED, TOKENS, WRAPPED, in_bfloat16, tiny_ids, tiny_model
from more import MORE, MORE_EXPERTS
from safetensors.torch import save_file
from shapes import OF_TYPE, SMALL
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import autoprune
from autoprune.errors import AutoPruneError

KNOWN = {**DENSE, **EXPERTS, **MORE, **MORE_EXPERTS, **WRAPPED, **REFUSED}
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SHELLS = tuple(name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if name not in TYPES)
LARGEST = 40_000_000  # parameters: more means that a size is missing in shapes.py


@dataclass(frozen=True)
class Verdict:
    """``word`` is works, refused or fails; ``row`` holds the columns of the page, or the reason."""

    word: str
    row: dict[str, str]


def shrunk(model_type: str) -> dict[str, Any]:
    """Small values for all sizes that this type's configuration, and those inside it, have."""
    return _fields(CONFIG_MAPPING[model_type]) | OF_TYPE.get(model_type, {})


def _fields(config: type[Any]) -> dict[str, Any]:
    own = {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    found = {name: value for name, value in SMALL.items() if name in own}
    for name, part in getattr(config, "sub_configs", {}).items():
        if dataclasses.is_dataclass(part):
            found[name] = _fields(part) | OF_TYPE.get(part.model_type, {})
    return found


def build(model_type: str) -> PreTrainedModel:
    """A random tiny model of the type, in bfloat16."""
    if model_type in KNOWN:
        return in_bfloat16(tiny_model(model_type))
    config = CONFIG_MAPPING[model_type](**shrunk(model_type))
    auto = AutoModelForImageTextToText if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else None
    auto = auto or AutoModelForCausalLM
    with torch.device("meta"):
        count = sum(p.numel() for p in auto.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters: a size is missing in shapes.py")
    torch.manual_seed(0)
    return in_bfloat16(auto.from_config(config, dtype=torch.float32).eval())


def judge(model_type: str) -> Verdict:
    """Builds, saves, inspects, prunes by Wanda and LLM-Barber, writes, loads again."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "dense"
        try:
            build(model_type).save_pretrained(here)
            save_file({"input_ids": tiny_ids()}, Path(folder) / "ids.safetensors")
            return Verdict("works", _prune(here))
        except AutoPruneError as error:
            return Verdict("refused", {"reason": str(error).replace(folder, "").replace("/dense", "MODEL")})
        except Exception as error:
            return Verdict("fails", {"reason": f"{type(error).__name__}: {error}"})


def _prune(here: Path) -> dict[str, str]:
    data = {"calibration_data": here.parent / "ids.safetensors", "nsamples": 6, "seqlen": TOKENS}
    result = autoprune.prune(here, sparsity_ratio=0.5, prune_barber=True, save_model=here.parent / "out", **data)
    seen = autoprune.inspect(here, seqlen=TOKENS)
    orders: dict[int, list[str]] = {}
    for sub in result.summary.sub_blocks:
        orders.setdefault(sub.block, []).append(sub.name)
    return {
        "blocks": f"`{seen.block_list}`",
        "layers": str(len(result.summary.layers)),
        "coverage": f"{seen.coverage:.1%}",
        "sub-blocks": " or ".join(
            dict.fromkeys(", ".join(f"`{name}`" for name in order) for order in orders.values())
        ),
        "replay": seen.replay,
        "stays dense": ", ".join(seen.unreached),
        "left alone": ", ".join(seen.left_alone),
    }
