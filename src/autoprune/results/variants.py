"""Rows seen by what they have in common: texts, and variants, which are runs that differ only by their seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from autoprune.results.types import EvaluationRow, PruningSummary

DENSE = ("dense", "dense")  # method and target of a model that nothing was done to
# settings that say where results go or how a run is shown, not how they came about
NOT_SETTINGS = frozenset(
    {"model", "seed", "save_model", "save_ppl", "save_zeroshot", "delete", "resume", "overwrite", "quiet"}
    | {"cache_dir", "datasets_cache_dir", "compare", "no_dense"}
)


@dataclass(frozen=True)
class Text:
    """One evaluation text at one window length: a column of the tables."""

    source: str
    seqlen: int
    name: str  # short form of the source

    @property
    def label(self) -> str:
        """Column header, which states the window length."""
        return f"{self.name} ({self.seqlen})"

    @property
    def title(self) -> str:
        """Column header where there is room."""
        return f"perplexity, {self.name} ({self.seqlen} tokens)"


@dataclass(frozen=True)
class Spread:
    """A mean and, over several seeds, the sample standard deviation."""

    mean: float
    sd: float | None = None
    count: int = 1

    @property
    def finite(self) -> bool:
        """Whether the mean is a number."""
        return math.isfinite(self.mean)


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs that differ only by their seed."""

    model: str
    method: str
    settings: str  # what tells it from another variant of the same model, method and target
    target: str
    rows: tuple[EvaluationRow, ...]

    @property
    def name(self) -> str:
        """The steps, with what sets the variant apart."""
        return f"{self.method} ({self.settings})" if self.settings else self.method

    @property
    def dense(self) -> bool:
        """Whether it is the unpruned model."""
        return is_dense(self.rows[0])

    @property
    def family(self) -> str:
        """The first step, whose colour the variant has."""
        return steps_of(self.method)[0]

    @property
    def refined(self) -> bool:
        """Whether other steps followed the first."""
        return len(steps_of(self.method)) > 1

    @property
    def summary(self) -> PruningSummary | None:
        """What pruning did, of the first run that says so."""
        return next((row.pruning for row in self.rows if row.pruning is not None), None)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, and deviation where there are several; None for no value. What is no number makes the mean none."""
    if not values:
        return None
    finite = all(math.isfinite(v) for v in values)
    mean = statistics.fmean(values) if finite else sum(values)
    return Spread(mean, statistics.stdev(values) if finite and len(values) > 1 else None, len(values))


def steps_of(method: str) -> tuple[str, ...]:
    """The steps of a method's label without their settings: ``a (x 0.1)+b (y)`` is a, b."""
    return tuple(part.partition(" (")[0] for part in method.split("+"))


def is_dense(row: EvaluationRow) -> bool:
    """Whether the row is the unpruned model."""
    return "dense" in (row.method, row.target)


def flat_settings(row: EvaluationRow) -> dict[str, Any]:
    """The row's settings without nesting, and without those that change no number."""
    return {k: v for k, v in _flat(row.settings).items() if k not in NOT_SETTINGS}


def seed_of(row: EvaluationRow) -> Any:
    """The row's seed, or None."""
    return _flat(row.settings).get("seed")


def model_of(row: EvaluationRow) -> str:
    """The user's word for the row's model; empty where the record has none."""
    return str(_flat(row.settings).get("model") or "")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of groups and of steps side by side; no two have an option of one name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value))
        elif key == "steps" and all(isinstance(step, dict) for step in value):
            for step in value:
                flat.update({name: option for name, option in step.items() if name != "name"})
        else:
            flat[key] = value
    return flat


def texts_of(rows: Sequence[EvaluationRow]) -> list[Text]:
    """In order of first appearance; paths are shortened to file names where that is unambiguous."""
    keys = list(dict.fromkeys((p.source, p.seqlen) for row in rows for p in row.perplexity))
    keys = list(dict.fromkeys([*keys, *((name, s.seqlen) for row in rows for name, s in row.shifts.items())]))
    names = {source: PurePosixPath(source.replace("\\", "/")).name or source for source, _ in keys}
    shown = list(names.values())
    return [
        Text(source, seqlen, source if shown.count(names[source]) > 1 else names[source]) for source, seqlen in keys
    ]


def with_references(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows, and before them what they say they are compared with, as far as no row is that already.

    Such a row has perplexities alone: how many zeros a dense model has was not counted, and a step keeps the share of
    zeros that the target asks for.
    """
    there = {_place(row) for row in rows}
    found: dict[tuple[Any, ...], EvaluationRow] = {}
    for row in rows:
        for reference in row.beside:
            dense = reference.method == DENSE[0]
            target, zeros = (DENSE[1], math.nan) if dense else (row.target, row.sparsity)
            made = EvaluationRow(reference.method, target, zeros, reference.perplexity, row.settings)
            if (key := _place(made)) not in there:
                known = found.setdefault(key, made).perplexity
                more = [
                    p for p in made.perplexity if (p.source, p.seqlen) not in {(k.source, k.seqlen) for k in known}
                ]
                found[key] = replace(found[key], perplexity=(*known, *more))
    return [*found.values(), *rows]


def _place(row: EvaluationRow) -> tuple[Any, ...]:
    """What one dense model, or one run of a method on it, is known by."""
    return (model_of(row), *((DENSE[0],) if is_dense(row) else (row.method, row.target, seed_of(row))))


def variants_of(rows: Sequence[EvaluationRow]) -> list[Variant]:
    """Rows gathered by everything but the seed: model by model, dense first, then target by target, each in order of
    appearance.
    """
    steps = {step for row in rows for step in steps_of(row.method)}
    groups: dict[tuple[str, str, str, str], list[EvaluationRow]] = {}
    known: dict[str, dict[str, Any]] = {}
    for row in rows:  # what another step is set to changes nothing here
        foreign = steps - set(steps_of(row.method))
        own = {k: v for k, v in row.settings.items() if k not in foreign}
        settings = {k: v for k, v in _flat(own).items() if k not in NOT_SETTINGS}
        word = json.dumps(settings, sort_keys=True, default=str)
        known[word] = settings
        groups.setdefault((model_of(row), row.method, row.target, word), []).append(row)
    models, targets = (list(dict.fromkeys(key[i] for key in groups)) for i in (0, 2))
    order = sorted(groups, key=lambda k: (models.index(k[0]), not is_dense(groups[k][0]), targets.index(k[2])))
    variants = []
    for key in order:
        rivals = [known[k[3]] for k in groups if k[:3] == key[:3]]
        variants.append(Variant(*key[:2], _differing(known[key[3]], rivals), key[2], tuple(groups[key])))
    return variants


def _differing(mine: dict[str, Any], rivals: Sequence[dict[str, Any]]) -> str:
    """In short what of the settings differs: words and a lone number as they are, other numbers and switches named."""
    names = [name for name in mine if any(other.get(name) != mine[name] for other in rivals)]
    numbers = [name for name in names if isinstance(mine[name], (int, float)) and not isinstance(mine[name], bool)]
    words, named = [], []
    for name in names:
        value = mine[name]
        if isinstance(value, bool):
            named += [name.replace("_", " ")] if value else []
        elif isinstance(value, str) or numbers == [name]:
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
        else:
            named.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join([*([" ".join(words)] if words else []), *named])
