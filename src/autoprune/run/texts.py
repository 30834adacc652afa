"""The token windows of a run: those that calibrate, and those on which perplexity is measured."""

from __future__ import annotations

import os
from pathlib import Path

from autoprune.data.cache import cached_windows
from autoprune.data.handed import CALIBRATION, EVALUATION, source_of
from autoprune.data.hub import MIRROR_VARIABLE
from autoprune.data.mix import counts, mixed, split_mix
from autoprune.data.sources import Source, parse_source
from autoprune.data.windows import Windows, calibration_windows, evaluation_windows
from autoprune.events import Emit, Phase
from autoprune.recipe.recipe import Recipe
from autoprune.run.open import Subject
from autoprune.storage.manifest import versions
from autoprune.storage.shards import companions


def source_name(word: str) -> str:
    """The user's word for a text without the folders that it lies in."""
    return Path(word).name if Path(word).exists() else word


def calibration_of(recipe: Recipe, subject: Subject, seqlen: int, emit: Emit) -> Windows:
    """The calibration windows, of one source or of a mix. Raises: DataError if one can't be read or is too short."""
    options = recipe.calibration
    word = options.calibration_data
    parts = split_mix(word) if (CALIBRATION, word) not in recipe.held else ()
    if not parts:
        return _drawn(recipe, subject, word, seqlen, options.nsamples, emit)
    shares = counts(parts, options.nsamples)
    for part in parts:
        parse_source(part.word, CALIBRATION)
    drawn = [
        _drawn(recipe, subject, part.word, seqlen, count, emit) for part, count in zip(parts, shares, strict=True)
    ]
    return mixed(parts, drawn)


def _drawn(recipe: Recipe, subject: Subject, word: str, seqlen: int, nsamples: int, emit: Emit) -> Windows:
    """So many windows of one source."""
    options = recipe.calibration
    source = source_of(recipe, word, CALIBRATION)
    emit(Phase(f"calibration data {source_name(source.name)}"))

    def draw() -> Windows:
        return calibration_windows(
            source,
            subject.load_tokenizer,
            nsamples=nsamples,
            seqlen=seqlen,
            seed=options.seed,
            vocab_size=subject.config.vocab_size,
            datasets_cache_dir=options.datasets_cache_dir,
        )

    return cached_windows(_key(subject, source, word, seqlen, nsamples=nsamples, seed=options.seed), draw, emit)


def evaluation_of(recipe: Recipe, subject: Subject, seqlen: int, emit: Emit) -> dict[str, Windows]:
    """The windows of every evaluation text, by its name. Raises: DataError as ``calibration_of`` does."""
    windows = {}
    sources = {word: source_of(recipe, word, EVALUATION) for word in dict.fromkeys(recipe.evaluation.eval_data)}
    short = [source_name(source.name) for source in sources.values()]
    for word, source in sources.items():
        name = source_name(source.name) if short.count(source_name(source.name)) == 1 else word
        emit(Phase(f"evaluation data {name}"))

        def cut(source: Source = source) -> Windows:
            cache = recipe.calibration.datasets_cache_dir
            return evaluation_windows(
                source,
                subject.load_tokenizer,
                seqlen=seqlen,
                vocab_size=subject.config.vocab_size,
                datasets_cache_dir=cache,
            )

        windows[name] = cached_windows(_key(subject, source, word, seqlen, purpose="evaluation"), cut, emit)
    return windows


def _key(subject: Subject, source: Source, word: str, seqlen: int, **more: object) -> dict[str, object] | None:
    """What windows depend on: text, tokenizer, length, versions; None where one of them has no files to know it by."""
    if subject.checkpoint is None or subject.own_tokenizer or source.given:
        return None
    # All that lies beside the weights: which of these files make the tokenizer, only its own class knows.
    files = [*([source.path] if source.path else []), *companions(subject.checkpoint.directory)]
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    mirror = os.environ.get(MIRROR_VARIABLE)
    return {
        "source": word,
        "mirror": mirror,
        "model": subject.name,
        "files": stamps,
        "seqlen": seqlen,
        **versions(),
        **more,
    }
