"""Several models' speed and size beside each other, from beginning to end: look, load in turn, measure, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from autoprune.errors import ModelError, OutputError, RecipeError
from autoprune.evaluation.speed import Work, check_cache, count_zeros, held_bytes_of, in_turn, measure, warm_up
from autoprune.events import Emit, Phase
from autoprune.events import Work as Progress
from autoprune.machine.devices import choose_device
from autoprune.recipe.checks import check_bounds, made, model_word, place_word
from autoprune.recipe.commands import SPEED
from autoprune.recipe.keywords import SpeedChoices, Unpack
from autoprune.recipe.options import SpeedOptions
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.report.progress import following
from autoprune.report.save import check_report_directory, claimed
from autoprune.results.codec import dump_json
from autoprune.results.speed import COMPILED, EAGER, ModelSpeed, SpeedResult, Timing
from autoprune.results.speed_tables import speed_text
from autoprune.run.labels import names_apart
from autoprune.run.memory import human
from autoprune.run.open import RESIDENT_SHARE, context_of, held_bytes
from autoprune.run.shortage import told_with
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.complete import check_complete
from autoprune.storage.files import write_text
from autoprune.storage.locate import locate
from autoprune.storage.manifest import versions
from autoprune.storage.skeleton import build_skeleton, quiet_transformers
from autoprune.storage.source import open_checkpoint

STEM = "speed"


@dataclass(frozen=True)
class _Candidate:
    """A model that was looked at and may be loaded."""

    name: str  # in the tables
    checkpoint: Checkpoint
    kind: Any  # its class
    dtype: torch.dtype
    vocabulary: int


def speed(
    models: str | Path | Sequence[str | Path],
    *,
    save: str | Path | None = None,
    emit: Emit | None = None,
    **options: Unpack[SpeedChoices],
) -> SpeedResult:
    """How quick and how large models are on this machine, measured in turn and compared with the first of them.

    ``models`` are hub ids, directories or ``"demo"``; they are held in memory together. ``options``: ``rounds``,
    ``prompt_tokens``, ``new_tokens``, ``batch_size``, ``compiled``, ``dtype``, ``device``, ``cache_dir``,
    ``trust_remote_code``. ``save``: a directory for ``speed.json`` and ``speed.txt``, replaced with ``overwrite``.
    Raises: AutoPruneError for everything that the user can mend.
    """
    several: Any = models if isinstance(models, Iterable) and not isinstance(models, (str, nn.Module)) else [models]
    words = [model_word(word) for word in several]
    recipe, how = _choices(words, dict(options))
    directory = place_word(save, "save") if save is not None else None
    with claimed("save", directory, STEM) if directory else contextlib.nullcontext():
        return _speed(words, recipe, how, directory, emit)


def _speed(
    words: Sequence[str], recipe: Recipe, how: SpeedOptions, directory: Path | None, emit: Emit | None
) -> SpeedResult:
    if directory:
        check_report_directory(directory, "save")
        if (directory / f"{STEM}.json").exists() and not recipe.output.overwrite:
            raise OutputError(
                f"--save {directory}: there is a {STEM}.json already; choose another directory, or replace it with"
                " --overwrite"
            )
    device = choose_device(recipe.model.device)
    candidates = [_look(name, word, recipe, how, device) for name, word in zip(names_apart(words), words, strict=True)]
    _check_room(candidates, recipe, device)
    remedy = "fewer models at a time, --batch_size, --prompt_tokens or --dtype need less"
    with told_with(lambda: remedy), following(emit, quiet=recipe.run.quiet) as seen:
        found = _measured(candidates, how, device, seen)
    threads = torch.get_num_threads()
    settings = {**dataclasses.asdict(how), "device": _device_name(device), "threads": threads, **versions()}
    result = SpeedResult(found, settings)
    if directory:
        _save(directory, result)
    return result


def _choices(words: Sequence[str], options: dict[str, Any]) -> tuple[Recipe, SpeedOptions]:
    """Raises: RecipeError for options that mean nothing here, and for values that can't be used."""
    if not words:
        raise RecipeError("there is nothing to measure; give at least one model")
    SPEED.check(options)
    ours = {f.name for f in dataclasses.fields(SpeedOptions)}
    how = made(SpeedOptions, options)
    check_bounds(how)
    others = {name: value for name, value in options.items() if name not in ours}
    return recipe_from_flat({"model": words[0], "sparsity_ratio": 0, **others}), how


def _look(name: str, word: str, recipe: Recipe, how: SpeedOptions, device: torch.device) -> _Candidate:
    """Opens a model without its weights. Raises: ModelError if it could not be measured."""
    options = recipe.model
    checkpoint = open_checkpoint(locate(word, options.cache_dir))
    if type(checkpoint) is not Checkpoint:
        raise ModelError(
            f"{name} is quantised, and here it would run dequantised; measure it in the engine that it is made for, or"
            " give the float16, bfloat16 or float32 model"
        )
    skeleton = build_skeleton(checkpoint, options.dtype, device, trust_remote_code=options.trust_remote_code)
    check_complete(skeleton)
    model: Any = skeleton.model
    if not model.can_generate():
        raise ModelError(f"{name}: {type(model).__name__} can't generate, so there is no speed to measure")
    text = model.config.get_text_config()
    context, needed = context_of(text), how.prompt_tokens + how.new_tokens
    if context is not None and context < needed:
        raise RecipeError(
            f"{name} has a context of {context} tokens, and --prompt_tokens {how.prompt_tokens} with --new_tokens"
            f" {how.new_tokens} needs {needed}; give smaller ones"
        )
    return _Candidate(name, checkpoint, type(model), model.dtype, text.vocab_size)


def _check_room(candidates: Sequence[_Candidate], recipe: Recipe, device: torch.device) -> None:
    """Raises: RecipeError if the models can't be held together, with what running them takes."""
    need = sum(held_bytes(candidate.checkpoint, recipe) for candidate in candidates)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need >= (room := int(RESIDENT_SHARE * free)):
        raise RecipeError(
            f"speed holds its models in memory together: these take {human(need)}, and of {human(free)} free on"
            f" {device.type} at most {human(room)} are used for weights; give fewer or smaller models, or a narrower"
            " --dtype"
        )


def _measured(
    candidates: Sequence[_Candidate], how: SpeedOptions, device: torch.device, emit: Emit
) -> tuple[ModelSpeed, ...]:
    """Loads in turn, then generates in turn; all models see the same prompts."""
    held: dict[str, Any] = {}
    rounds = how.rounds + 1  # the first fills the system's cache of files, and is not counted
    emit(Phase("loading", total=rounds * len(candidates)))
    loads = [functools.partial(_load, candidate, held, device) for candidate in candidates]
    taken = in_turn(loads, rounds, _teller("loading", rounds * len(candidates), emit))
    generator = torch.Generator().manual_seed(0)
    words = min(candidate.vocabulary for candidate in candidates)
    ids = torch.randint(words, (how.batch_size, how.prompt_tokens), generator=generator).to(device)
    for name, model in held.items():
        check_cache(name, model, ids[:1])
    timings = _timings(held, Work(ids[:1], ids, how.new_tokens), how, emit)
    return tuple(
        ModelSpeed(
            c.name,
            str(c.dtype).removeprefix("torch."),
            c.checkpoint.bytes,
            held_bytes_of(held[c.name]),
            *count_zeros(held[c.name]),
            tuple(seconds[1:]),
            timings[c.name],
            c.vocabulary,
        )
        for c, seconds in zip(candidates, taken, strict=True)
    )


def _timings(held: dict[str, Any], work: Work, how: SpeedOptions, emit: Emit) -> dict[str, tuple[Timing, ...]]:
    """Warms up, then measures. Raises: ModelError as ``warm_up`` does."""
    keys = [(name, mode) for mode in ((EAGER, COMPILED) if how.compiled else (EAGER,)) for name in held]
    name = "warming up, compiling" if how.compiled else "warming up"
    emit(Phase(name, total=len(keys)))
    peaks = dict[tuple[str, str], int | None]()
    for number, key in enumerate(keys, start=1):
        peaks[key] = warm_up(key[0], held[key[0]], work, key[1])
        emit(Progress(name, number, len(keys)))
    total = how.rounds * len(keys)
    emit(Phase("measuring", total=total))
    return measure(held, work, peaks, how.rounds, _teller("measuring", total, emit))


def _load(candidate: _Candidate, held: dict[str, Any], device: torch.device) -> float:
    """Loads the model as its users do, in place of the one that an earlier round has loaded; in seconds."""
    held.pop(candidate.name, None)
    gc.collect()
    onto = {} if device.type == "cpu" else {"device_map": {"": device}}
    with quiet_transformers():
        start = time.perf_counter()
        model = candidate.kind.from_pretrained(candidate.checkpoint.directory, dtype=candidate.dtype, **onto)
        taken = time.perf_counter() - start
    model.generation_config = type(model.generation_config)()  # the model's own may sample, or end early
    held[candidate.name] = model.eval()
    return taken


def _teller(name: str, total: int, emit: Emit) -> Callable[[int], None]:
    """Tells how far it is."""
    return lambda done: emit(Progress(name, done, total))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _save(directory: Path, result: SpeedResult) -> None:
    text = speed_text(result) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / f"{STEM}.txt", text)
        write_text(directory / f"{STEM}.json", dump_json(result))
    except OSError as error:
        raise OutputError(
            f"--save {directory}: can't write there ({error}); what should have been written:\n{text}"
        ) from error
