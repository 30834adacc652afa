"""What a model is besides its weights: the configuration and the code that say what is computed with them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from torch import nn

from autoprune.storage.files import file_sha256
from autoprune.storage.shards import companions
from autoprune.storage.weight_files import read_json

REMOTE = "transformers_modules."  # the package in which transformers keeps code that came with a model


def described_by(directory: Path, model: nn.Module) -> dict[str, str]:
    """SHA-256 of ``config.json``, however it is laid out, and of the model's own code where it runs any."""
    config = json.dumps(read_json(directory / "config.json"), sort_keys=True)
    found = {"config": hashlib.sha256(config.encode()).hexdigest()}
    if code := _code(model):
        found["code"] = hashlib.sha256(json.dumps(code).encode()).hexdigest()
    return found


def files_of(directory: Path) -> str:
    """One SHA-256 of all that lies beside a model's weights: what the answers to tasks depend on, besides these, are
    tokenizer, chat template and generation_config.json as well.
    """
    found = [(str(path.relative_to(directory)), file_sha256(path)) for path in companions(directory)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _code(model: nn.Module) -> list[tuple[str, str]]:
    """Name and hash of every file of the packages that the model's classes come from, where these came with it."""
    classes = {type(module) for module in model.modules()} | {type(getattr(model, "config", None))}
    modules = {cls.__module__ for cls in classes if cls.__module__.startswith(REMOTE)}
    folders = {Path(file).parent for name in modules if (file := sys.modules[name].__file__)}
    return sorted({(path.name, file_sha256(path)) for folder in folders for path in folder.glob("*.py")})
