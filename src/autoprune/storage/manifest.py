"""``autoprune.json``: what a result is, how it was made, which files it consists of. Written and read here alone."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from autoprune.core.sparsity import Target, parse_target
from autoprune.errors import ModelError, OutputError
from autoprune.recipe.recipe import CACHES, Recipe, recipe_from_record
from autoprune.results.codec import dump_json, first_difference, to_jsonable
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.results.types import PruningSummary
from autoprune.storage.files import file_sha256, write_text, writing_to
from autoprune.storage.weight_files import weight_files

MANIFEST = "autoprune.json"
FORMAT = 2  # of manifests and journals; 1 was that of the first releases, which notes no files but the shards
TEMPLATES = "additional_chat_templates"  # the one folder of a model: transformers keeps chat templates there
# How files end that say what a model computes besides its weights, and from which tokens.
INPUTS = (".json", ".model", ".jinja", ".py", "merges.txt", "vocab.txt")
# Names that change what is loaded, wherever they come from; and those of them that no perplexity depends on.
READ = (
    *("adapter_config.json", "added_tokens.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model"),
    *(
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "generation_config.json",
    ),
)
UNREAD = {"generation_config.json", "chat_template.jinja"}
PACKAGES = ("autoprune", "torch", "transformers", "safetensors")
NOT_PROVENANCE = (  # where results go does not change them: two runs give identical files
    "output",
    "run",
    "evaluation",
    "zeroshot",
)


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
    written: Sequence[Mapping[str, object]],
    *,
    delete: bool = False,
) -> str:
    """The text of ``autoprune.json``; no times and no places of output or caches, so that it is the same for the same
    run. ``written``: name, bytes and sha256 of all files of the result but this one.

    ``delete``: the run will remove its result in the end; should it be stopped before, the next one knows that it may.
    """
    layers = [to_jsonable(layer) | {"sparsity": round(layer.sparsity, 6)} for layer in summary.layers]
    document = {
        "format": FORMAT,
        **about,
        "sparsity": summary.sparsity,
        "layers": layers,
        "sub_blocks": [dataclasses.asdict(sub) for sub in summary.sub_blocks],
        "warnings": list(summary.warnings),
        **({"surveys": to_jsonable(summary.surveys)} if summary.surveys else {}),
        **({"trained": list(summary.trained)} if summary.trained else {}),
        **({"whole": to_jsonable(summary.whole)} if summary.whole else {}),
        **_contents(written),
        **({"delete": True} if delete else {}),
    }
    return dump_json(document)


def rotation_manifest(about: Mapping[str, Any], written: Sequence[Mapping[str, object]]) -> str:
    """The same of a rotated or a smaller dense model: it has no recipe, no layers and no sparsity, for nothing in it
    was pruned to zeros.

    ``about`` holds a ``rotation`` or a ``shrink``, which tells it from a pruned model.
    """
    return dump_json({"format": FORMAT, **about, **_contents(written)})


def _contents(written: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {
        "shards": [entry for entry in written if str(entry["name"]).endswith(".safetensors")],
        "written": sorted(str(entry["name"]) for entry in written),
        "files": [entry for entry in written if not str(entry["name"]).endswith(".safetensors")],
    }


@dataclass(frozen=True)
class Manifest:
    """``autoprune.json`` of a result directory, of this format or an earlier one."""

    directory: Path
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises: OutputError if it is missing, damaged, or of a later version of the program."""
        path = directory / MANIFEST
        try:
            raw = dict(json.loads(path.read_text(encoding="utf-8")))
            names = {str(PurePath(name)) for name in raw["written"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{path} does not say what autoprune wrote there ({error}); choose another directory"
            ) from error
        if not isinstance(number := raw.get("format", 1), int) or number > FORMAT:
            raise OutputError(
                f"{path} is of format {number!r}, and this version of autoprune reads up to {FORMAT}; use the version"
                " that wrote it"
            )
        return cls(directory, raw | {"written": sorted(names)})

    @property
    def format(self) -> int:
        """1 or ``FORMAT``."""
        return int(self.raw.get("format", 1))

    @property
    def is_rotation(self) -> bool:
        """Whether this is a rotated dense model, in which nothing is pruned."""
        return "rotation" in self.raw

    @property
    def shrink(self) -> Mapping[str, Any] | None:
        """What went of a model that was made smaller; None for other results."""
        found: Mapping[str, Any] | None = self.raw.get("shrink")
        return found

    @property
    def written(self) -> list[str]:
        """The files of the result but for the manifest, and for names that would lead out of the directory."""
        names = [PurePath(name) for name in self.raw["written"]]
        return [str(name) for name in names if str(name) in (name.name, f"{TEMPLATES}/{name.name}")]

    @property
    def files(self) -> list[Path]:
        """The files that autoprune wrote and that are there, the manifest last; others are not ours to touch."""
        return [path for name in [*self.written, MANIFEST] if (path := self.directory / name).is_file()]

    @property
    def recipe(self) -> Recipe:
        """What the result depends on, as it was asked for.

        Raises: KeyError, TypeError or RecipeError if it says nothing that can be understood.
        """
        return recipe_from_record(self.raw["recipe"])

    @property
    def target(self) -> Target | None:
        """What every layer was pruned to; None: a pattern that was given from outside.

        Raises: KeyError, TypeError or RecipeError if the recipe says nothing that can be understood.
        """
        pruning = self.raw["recipe"]["pruning"]
        kind, ratio = pruning["sparsity_type"], pruning["sparsity_ratio"]
        return None if kind == "unstructured" and ratio is None else parse_target(kind, ratio)

    @property
    def trained(self) -> tuple[str, ...]:
        """Parameters that are no layer's weight and were changed, such as norms."""
        return tuple(self.raw.get("trained", ()))

    @property
    def added(self) -> list[str]:
        """Files that are no part of the result and change what is loaded with it, such as an adapter's."""
        return [name for name in READ if name not in self.raw["written"] and (self.directory / name).exists()]

    @property
    def describes_weights(self) -> bool:
        """Whether the weight files that a model would be loaded from are those that were written, byte for byte."""
        written = {entry["name"]: entry["sha256"] for entry in self.raw.get("shards", ())}
        try:
            read = weight_files(self.directory)
        except ModelError:  # whoever loads it will say what is wrong
            return False
        return read.keys() == written.keys() and all(
            file_sha256(self.directory / name) == digest for name, digest in written.items()
        )

    @property
    def describes_inputs(self) -> bool:
        """Whether config.json, tokenizer and whatever else lies beside the weights is as it was written, as far as it
        can change a perplexity. A result of the first format notes none of them.
        """
        noted = {entry["name"]: entry["sha256"] for entry in self.raw.get("files", ())}
        return not {*self.added} - UNREAD and all(
            (self.directory / name).is_file() and file_sha256(self.directory / name) == digest
            for name, digest in noted.items()
            if name.endswith(INPUTS) and name not in UNREAD
        )

    @property
    def is_temporary(self) -> bool:
        """Whether the result was made by a run that was to remove it in the end (--delete)."""
        return bool(self.raw.get("delete"))

    def difference(self, about: Mapping[str, Any]) -> str | None:
        """Where a run that depends on ``about`` differs from the one that made this; None if it is the same."""
        if self.format != FORMAT:
            return f"it is of an earlier version of autoprune (format {self.format}, now {FORMAT})"
        now = json.loads(dump_json(dict(about)))
        return first_difference({key: self.raw.get(key) for key in now}, now)

    def summary(self, seconds: dict[str, float]) -> PruningSummary:
        """What became of the layers; ``seconds`` are those of the run that asks, for a manifest holds no times."""
        layers = ({k: v for k, v in layer.items() if k != "sparsity"} for layer in self.raw["layers"])
        return PruningSummary(
            tuple(LayerOutcome(**layer) for layer in layers),
            tuple(SubBlockOutcome(**sub) for sub in self.raw["sub_blocks"]),
            seconds,
            tuple(self.raw["warnings"]),
            dict(self.raw.get("surveys", {})),
            self.trained,
            dict(self.raw.get("whole", {})),
        )

    def keep(self) -> None:
        """A result that was to be removed in the end stays after all: its manifest becomes what it would have been
        from the start. Raises: OutputError if it can't be written.
        """
        if not self.is_temporary:
            return
        found = {key: value for key, value in self.raw.items() if key != "delete"}
        try:
            with writing_to(self.directory / MANIFEST):
                write_text(self.directory / MANIFEST, dump_json(found))
        except OutputError as error:
            raise OutputError(
                f"{error}. It still says that the result is to be removed; repeat the command with --resume"
            ) from error

    def delete(self) -> None:
        """Removes what autoprune wrote into the directory, and the directory if nothing else is in it."""
        for path in self.files:
            path.unlink()
        drop_templates(self.directory)
        if not any(self.directory.iterdir()):
            self.directory.rmdir()


def drop_templates(directory: Path) -> None:
    """The folder of chat templates goes when nothing is in it any more."""
    if (directory / TEMPLATES).is_dir() and not any((directory / TEMPLATES).iterdir()):
        (directory / TEMPLATES).rmdir()
