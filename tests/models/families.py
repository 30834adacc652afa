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
from structure import beside, structure
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import autoprune
from autoprune.errors import AutoPruneError
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore

KNOWN = {**DENSE, **EXPERTS, **MORE, **MORE_EXPERTS, **WRAPPED, **REFUSED}
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SHELLS = tuple(name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if name not in TYPES)
LARGEST = 40_000_000  # parameters: more means that a size is missing in shapes.py


@dataclass(frozen=True)
class Verdict:
    """``word`` is works, refused or fails; ``row`` holds the columns of the page, or the reason."""

    word: str
    row: dict[str, str]


class TooLarge(ValueError):
    """A size is missing in shapes.py, so that a tiny model is not tiny."""


def shrunk(model_type: str) -> dict[str, Any]:
    """Small values for all sizes that this type's configuration, and those inside it, have."""
    return _fields(CONFIG_MAPPING[model_type]) | OF_TYPE.get(model_type, {})


def _fields(config: type[Any]) -> dict[str, Any]:
    """Every size gets a value of the kind that the configuration has there: a list stays what it is."""
    own = {field.name: field for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
    found = {
        name: value
        for name, value in SMALL.items()
        if name in own and ("int" in str(own[name].type).replace("list[int]", "").replace("tuple[int", ""))
    }
    parts = getattr(config, "sub_configs", {})
    usual = config() if any(part is AutoConfig for part in parts.values()) else None
    for name, part in parts.items():
        kind = type(getattr(usual, name, None)) if part is AutoConfig else part
        if dataclasses.is_dataclass(kind):
            chosen = OF_TYPE.get(kind.model_type, {})
            found[name] = {"model_type": kind.model_type} | _fields(kind) | chosen
    return found


def build(model_type: str) -> PreTrainedModel:
    """A random tiny model of the type, or of a variant that the tests' lists name, in bfloat16."""
    if model_type in KNOWN:
        return in_bfloat16(tiny_model(model_type))
    config = CONFIG_MAPPING[model_type](**shrunk(model_type))
    auto = AutoModelForImageTextToText if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else None
    auto = auto or AutoModelForCausalLM
    with torch.device("meta"):
        count = sum(p.numel() for p in auto.from_config(config).parameters())
    if count > LARGEST:
        raise TooLarge(f"{count:,} parameters: a size is missing in shapes.py")
    torch.manual_seed(0)
    return in_bfloat16(auto.from_config(config, dtype=torch.float32).eval())


def judge(name: str) -> Verdict:
    """Builds, saves, inspects, prunes by Wanda and LLM-Barber, and writes the model of a type or variant."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "dense"
        try:
            build(name).save_pretrained(here)
        except TooLarge as error:
            return Verdict("fails", {"reason": str(error)})
        except ImportError as error:
            return _refused(f"transformers asks for a package: {error}")
        except Exception as error:
            return _refused(f"transformers did not build it: {type(error).__name__}: {error}")
        try:
            save_file({"input_ids": tiny_ids()}, here.parent / "ids.safetensors")
            return Verdict("works", _prune(here))
        except AutoPruneError as error:
            return _refused(str(error).replace(f"{here}: ", "").split("; not reached:")[0])
        except Exception as error:
            return Verdict("fails", {"reason": _plain(f"{type(error).__name__}: {error}")})


def _refused(reason: str) -> Verdict:
    return Verdict("refused", {"reason": _plain(reason)})


def _plain(text: str) -> str:
    """On one line of a table."""
    first = text.strip().split(" Model type should be one of")[0]
    return " ".join(first.replace("|", "/").replace("*", r"\*").replace("`", "").split())


def _prune(here: Path) -> dict[str, str]:
    skeleton = build_skeleton(open_checkpoint(here), "auto", torch.device("cpu"), trust_remote_code=False)
    store = CheckpointStore(skeleton, resident=False)
    row = structure(store.anatomy) | {"left alone": beside(store), "experts": "yes" * store.anatomy.has_experts}
    data = {"calibration_data": here.parent / "ids.safetensors", "nsamples": 6, "seqlen": TOKENS}
    result = autoprune.prune(here, sparsity_ratio=0.5, prune_barber=True, save_model=here.parent / "out", **data)
    orders: dict[int, list[str]] = {}
    for sub in result.summary.sub_blocks:
        orders.setdefault(sub.block, []).append(sub.name)
    named = dict.fromkeys(", ".join(f"`{part}`" for part in order) for order in orders.values())
    return row | {"sub-blocks": " or ".join(named), "replay": "exact"}  # the run checks that before it prunes
