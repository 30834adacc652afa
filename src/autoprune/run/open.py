"""The model of a run: found, opened, checked; on disk or in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from autoprune.errors import DataError, ModelError
from autoprune.machine.allocator import return_large_blocks
from autoprune.machine.devices import choose_device
from autoprune.recipe.checks import short
from autoprune.recipe.options import ModelOptions
from autoprune.recipe.recipe import Recipe
from autoprune.run.held import check_as_asked, check_held
from autoprune.run.memory import PROGRAM
from autoprune.run.sizes import parse_memory
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.complete import check_complete
from autoprune.storage.locate import DEMO, locate
from autoprune.storage.skeleton import build_skeleton, running_dtype, storage_dtype
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore, MemoryStore

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
RESIDENT_SHARE = (
    0.5  # of the free memory: a checkpoint up to this size is evaluated in memory, a larger one block by block
)
AnyStore = CheckpointStore | MemoryStore
AnyTokenizer = PreTrainedTokenizerBase | str | Path


@dataclass(frozen=True)
class Subject:
    """The model of a run: its weights' store, its name, and how to get at its tokenizer."""

    name: str
    store: AnyStore
    checkpoint: Checkpoint | None
    load_tokenizer: Callable[[], PreTrainedTokenizerBase]
    left_alone: tuple[str, ...] = ()  # what lies beside the language model, or in its checkpoint alone
    own_tokenizer: bool = False  # one that the user gave, and not the one beside the weights

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        config: Any = self.store.model.config
        return config.get_text_config()

    @property
    def context(self) -> int | None:
        """Longest window that the model was made for, in tokens; None where its configuration says nothing."""
        return context_of(self.config)


def context_of(config: Any) -> int | None:
    """Longest window in tokens by a text model's configuration; None where it says nothing."""
    found = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def open_model(recipe: Recipe, *, resident: bool | None, tokenizer: PreTrainedTokenizerBase | None = None) -> Subject:
    """Finds and opens the recipe's model; ``resident`` None: in memory as a whole if it fits there, else block by
    block. ``tokenizer``: one to use instead of the model's own.

    Raises: ModelError if it is missing, damaged or of an unknown kind.
    """
    options = recipe.model
    directory = locate(options.model, options.cache_dir, options.revision)
    checkpoint = open_checkpoint(directory)
    if not resident or recipe.run.memory:
        return_large_blocks()  # first, for while the model is built its weights are allocated too, each for a moment
    skeleton = build_skeleton(
        checkpoint, options.dtype, choose_device(options.device), trust_remote_code=options.trust_remote_code
    )
    check_complete(skeleton)
    store = CheckpointStore(skeleton, resident=fits(checkpoint, recipe) if resident is None else resident)
    return Subject(
        options.model,
        store,
        checkpoint,
        lambda: tokenizer or load_tokenizer(checkpoint.directory, options.trust_remote_code),
        store.left_alone,
        tokenizer is not None,
    )


def fits(checkpoint: Checkpoint, recipe: Recipe, *beside: Checkpoint) -> bool:
    """Whether a model, and others ``beside`` it, can be held in memory as a whole, with what else is needed, and
    within the recipe's budget.
    """
    room = psutil.virtual_memory().available
    if recipe.run.memory:
        room = min(room, parse_memory(recipe.run.memory) - PROGRAM)
    return sum(held_bytes(model, recipe) for model in (checkpoint, *beside)) < RESIDENT_SHARE * room


def held_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """What a model takes in memory as a whole: a wider --dtype makes more of its weights than is stored."""
    running = running_dtype(checkpoint, recipe.model.dtype, trust_remote_code=recipe.model.trust_remote_code)
    return int(checkpoint.bytes * max(1.0, running.itemsize / storage_dtype(checkpoint).itemsize))


def held_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, options: ModelOptions, *, save: bool = False
) -> Subject:
    """A model that is in memory already; with ``save`` it is to be saved in the end.

    Raises: ModelError as ``check_held`` does, or if it is of another precision or elsewhere than ``options`` ask for.
    """
    check_held(model, save=save)
    check_as_asked(model, options.dtype, options.device)

    def given() -> PreTrainedTokenizerBase:
        if tokenizer is None:
            raise DataError(
                "the model was given without its tokenizer: pass tokenizer= (one, or its name), or give token ids"
            )
        return tokenizer

    model.eval()
    store = MemoryStore(model)
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return Subject(name, store, None, given, store.left_alone, own_tokenizer=True)


def chosen_tokenizer(given: AnyTokenizer | None, options: ModelOptions) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a user gave, or named: a directory, ``"demo"``, or a name on the hub.

    Raises: ModelError if there is none of that name, or if it is something else.
    """
    if given is None or isinstance(given, PreTrainedTokenizerBase):
        return given
    if not isinstance(given, (str, Path)):
        raise ModelError(
            f"tokenizer is of type {type(given).__name__} ({short(given)}); give a transformers tokenizer, its"
            f" directory, or its name on the hub{_tokenizer_meant(given)}"
        )
    directory = DEMO if given == "demo" else Path(given).expanduser()
    if directory.is_dir():
        return load_tokenizer(directory, options.trust_remote_code)
    # The revision is the model's: of its own tokenizer, or the only thing on the hub that it can be meant for.
    revision = options.revision if options.model in ("", str(given)) else None
    try:
        return AutoTokenizer.from_pretrained(
            str(given),
            revision=revision or "main",
            trust_remote_code=options.trust_remote_code,
            cache_dir=options.cache_dir,
        )
    except Exception as error:  # of many libraries: files, network, the tokenizers themselves
        which = f" in its revision {short(revision)}" if revision else ""
        raise ModelError(
            f"tokenizer {short(str(given))}: there is no such directory, and the hub gives none of that name{which}"
            f" ({short(str(error))}); check the spelling, or give the directory that it is in"
        ) from error


def _tokenizer_meant(given: object) -> str:
    """What to give instead of something that only has to do with a tokenizer."""
    if "tokenizer" in dir(given):  # a processor, a pipeline
        return "; here that is its .tokenizer"
    if type(given).__module__.partition(".")[0] == "tokenizers":
        return "; this one becomes such with transformers.PreTrainedTokenizerFast(tokenizer_object=…)"
    return ""


def load_tokenizer(directory: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. Raises: ModelError if there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged tokenizer.json makes the tokenizers library raise Exception itself
        if hint := _tokenizer_needs(directory, str(error)):
            raise ModelError(f"{directory}: its tokenizer can't be read: {hint}") from error
        raise ModelError(
            f"{directory}: no tokenizer can be read there ({error}); add its files, or give token ids in a"
            " .safetensors file"
        ) from error


def _tokenizer_needs(directory: Path, message: str) -> str | None:
    """What is missing for a tokenizer, where its library would name something else."""
    if "trust_remote_code" in message:
        return "it brings its own code, which --trust_remote_code runs"
    if (directory / "tokenizer.json").is_file() or not any(directory.glob("*.model")):
        return None
    needed = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [package for package, module in needed.items() if not _is_there(module)]
    if not missing:
        return None
    return f"a sentencepiece model needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
