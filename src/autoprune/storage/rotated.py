"""Writes a dense model that was turned: blocks as they come, then its ends, its configuration, and what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autoprune.core.rotation import InputTerm, OutputTerm, RotationTerm
from autoprune.model.fold import Ends
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.manifest import MANIFEST, rotation_manifest
from autoprune.storage.result import JOURNAL, Workplace
from autoprune.storage.shards import CheckpointWriter
from autoprune.storage.skeleton import STORED
from autoprune.storage.store import CheckpointStore

CONFIG = "config.json"
BASES = {
    "stream": "its hidden states",
    "heads": "the values of its attention",
    "both": "its hidden states and of the values of its attention",
}


class TermFiles:
    """What rotations are learned from, a file of the workplace for every block: twice as large as a model in bfloat16.

    Terms are those of the hidden states; the Grams are of what enters the layers of attention's heads.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace

    def keep(self, index: int, terms: list[RotationTerm]) -> None:
        """Writes one block's terms."""
        tensors: dict[str, Tensor] = {}
        for number, term in enumerate(terms):
            seen = {"gram": term.gram} if isinstance(term, InputTerm) else {"squares": term.squares}
            for name, tensor in {"weight": term.weight, **seen}.items():  # copies: a Gram or a weight may be shared
                tensors[f"{number}.{name}"] = tensor.to("cpu", torch.float32, copy=True).contiguous()
        self._workplace.save(self._name(index), tensors)

    def read(self, index: int, device: torch.device) -> list[RotationTerm]:
        """One block's terms, in their order."""
        held = {name: t.to(device) for name, t in Checkpoint.one(self._workplace.path / self._name(index)).items()}
        terms: list[RotationTerm] = []
        while (weight := held.get(f"{len(terms)}.weight")) is not None:
            gram, squares = (held.get(f"{len(terms)}.{name}") for name in ("gram", "squares"))
            if gram is not None:
                terms.append(InputTerm(weight, gram))
            else:
                assert squares is not None
                terms.append(OutputTerm(weight, squares))
        return terms

    def keep_grams(self, index: int, grams: Mapping[str, Tensor]) -> None:
        """Writes one block's Grams."""
        copies = {name: gram.to("cpu", torch.float32, copy=True).contiguous() for name, gram in grams.items()}
        self._workplace.save(self._name(index, "grams"), copies)

    def read_grams(self, index: int, device: torch.device) -> dict[str, Tensor]:
        """One block's Grams, by layer."""
        held = Checkpoint.one(self._workplace.path / self._name(index, "grams"))
        return {name: gram.to(device) for name, gram in held.items()}

    def remove(self, kind: str) -> None:
        """All ``terms``, or all ``grams``, are no longer needed."""
        for path in self._workplace.path.glob(f"{JOURNAL}{kind}-*"):
            path.unlink()

    @staticmethod
    def _name(index: int, kind: str = "terms") -> str:
        return f"{JOURNAL}{kind}-{index:05d}"


class RotatedWriter:
    """Shards of a rotated model: what lies outside the blocks and does not turn, the blocks, and ends that do."""

    def __init__(self, workplace: Workplace, store: CheckpointStore, ends: Ends | None) -> None:
        self._workplace, self._store, self._ends = workplace, store, ends
        self._checkpoint, self._blocks = store.skeleton.checkpoint, len(store.anatomy.blocks)
        turned, owners = self._parameters(), store.skeleton.owners
        alone = [name for name in store.outside if owners[name] not in turned]
        self._shards = CheckpointWriter(workplace, self._checkpoint, alone, self._blocks + (ends is not None))
        store.write_to(self._shards.write_block, lambda *_: None)

    def finish(self) -> None:
        """Writes the ends as the model now holds them, and all that belongs to a checkpoint but its manifest."""
        words, stored = self._checkpoint.dtypes(), dict[str, list[str]]()
        for name, owner in self._store.skeleton.owners.items():
            stored.setdefault(owner, []).append(name)
        tensors: dict[str, Tensor] = {}
        for parameter, value in self._parameters().items():
            for name in stored.get(parameter, [parameter]):  # a head that was tied is stored from now on
                dtype = STORED[words[name]] if name in words else self._store.storage_dtype
                tensors[name] = value.detach().to("cpu", dtype, copy=True).contiguous()
        if self._ends is not None:
            self._shards.write_block(self._blocks, tensors)
        self._shards.finish()
        if self._ends is not None and self._ends.tied:
            self._workplace.write(CONFIG, _untied((self._workplace.path / CONFIG).read_text(encoding="utf-8")))

    def describe(self, about: Mapping[str, Any]) -> None:
        """Writes README.md and the manifest."""
        self._workplace.write("README.md", _card(about))
        self._workplace.write(MANIFEST, rotation_manifest(about, self._workplace.made()))

    def _parameters(self) -> dict[str, Tensor]:
        """Embedding, head and last norm by the names of their parameters; nothing if they do not turn."""
        model, found = self._store.model, dict[str, Tensor]()
        if self._ends is None:
            return found
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        for name, module in model.named_modules():
            if module in ends or (name == self._ends.norm.name and self._ends.norm.neutral is not None):
                found[f"{name}.weight"] = module.get_parameter("weight")
        return found


def _untied(text: str) -> str:
    """A config.json that ties nothing."""
    config = json.loads(text)
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    return json.dumps(config, indent=2) + "\n"


def _card(about: Mapping[str, Any]) -> str:
    model, rotation = about["model"], about["rotation"]
    base = f"base_model: {model['name']}\n" if "/" in model["name"] and not model["local"] else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- rotation
- autoprune
---

# {model["name"].rsplit("/", 1)[-1]}, rotated

The same function as the original, in another orthogonal basis of {BASES[rotation["basis"]]}: on a few windows its
logits differ by {rotation["difference"]:.1e} of their size, which is rounding. Nothing is pruned. The basis was chosen
by AutoPrune {about["versions"]["autoprune"]} so that importance is gathered in fewer weights; `autoprune.json` says
how.

It loads like any other checkpoint: `AutoModelForCausalLM.from_pretrained(DIR)`.
"""
