"""Every choice that a user can make, as frozen dataclasses.

This file is the one source of the command-line flags (``cli/flags.py``), of the TOML keys and of the
recipe that is written into ``autoprune.json``. It imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from autoprune.core.sparsity import SemiStructured, Target, check_ratio, parse_target
from autoprune.errors import RecipeError
from autoprune.recipe.options import (
    DTYPES,
    GRANULARITIES,
    METRICS,
    PLACES,
    PRECISIONS,
    PROTOCOLS,
    ZEROSHOT_TASKS,
    BarberOptions,
    CalibrationOptions,
    EvaluationOptions,
    ModelOptions,
    OutputOptions,
    PruningOptions,
    RebuildOptions,
    RunOptions,
    SparseGPTOptions,
    ZeroShotOptions,
)

CACHES = (
    ("model", "cache_dir"),
    ("calibration", "datasets_cache_dir"),
)  # by group: where things from the hub are kept changes no result
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of one part and of all together: what file systems take


@dataclass(frozen=True)
class Recipe:
    """One run: groups of options that together say everything about it."""

    model: ModelOptions = ModelOptions()
    pruning: PruningOptions = PruningOptions()
    sparsegpt: SparseGPTOptions = SparseGPTOptions()
    rebuild: RebuildOptions = RebuildOptions()
    barber: BarberOptions = BarberOptions()
    calibration: CalibrationOptions = CalibrationOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    zeroshot: ZeroShotOptions = ZeroShotOptions()
    output: OutputOptions = OutputOptions()
    run: RunOptions = RunOptions()

    @property
    def target(self) -> Target | None:
        """The sparsity asked for; None when only the dense model is evaluated, or when a given pattern is taken as it
        is.

        Raises: RecipeError if ratio and type contradict each other.
        """
        if self.rebuild.pruned_model and self.pruning.sparsity_type == "unstructured":
            check_ratio(self.pruning.sparsity_ratio)
            return None
        return parse_target(self.pruning.sparsity_type, self.pruning.sparsity_ratio)

    def with_model(self, model: str) -> Recipe:
        """The same recipe for another model."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, model=model))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they go into ``autoprune.json``."""
        return dataclasses.asdict(self)


def recipe_from_flat(values: dict[str, Any]) -> Recipe:
    """Builds a recipe from flat ``{field: value}``; fields that are absent keep their defaults.

    Raises: RecipeError naming the first key that no option has.
    """
    known = {f.name for group in groups(Recipe) for f in dataclasses.fields(group.type)}
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"unknown option {unknown[0]!r}; known options: {', '.join(sorted(known))}")
    values = {**PROTOCOLS.get(str(values.get("protocol")), {}), **values}
    if values.get("save_zeroshot"):
        values = {"tasks": ZEROSHOT_TASKS, **values}
    parts = {}
    for group in groups(Recipe):
        hints = typing.get_type_hints(group.type)
        fields = [f for f in dataclasses.fields(group.type) if f.name in values]
        parts[group.name] = group.type(**{f.name: _as_declared(f, hints[f.name], values[f.name]) for f in fields})
    return validated(Recipe(**parts))


def _as_declared(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A value from Python or TOML as the option's type wants it: paths become words, lists tuples, one word a list of
    one.

    Raises: RecipeError if it is of another type.
    """
    if isinstance(value, PurePath):
        value = str(value)
    if field.metadata.get("place") and isinstance(value, str) and value.startswith("~"):
        value = str(Path(value).expanduser())
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",")) if field.metadata.get("comma") else (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(part, (str, PurePath)) for part in value):
            return tuple(str(part) for part in value)
        raise RecipeError(f"--{field.name} {value!r} is no list of words")
    kinds = typing.get_args(hint) or (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if float in kinds and (whole or field.name == "sparsity_ratio"):  # the ratio has a judge of its own, core.sparsity
        return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
        raise RecipeError(f"--{field.name} {value!r} is of the wrong kind; it must be {wanted}")
    return value


_WORDS = {str: "a word", int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}


@dataclass(frozen=True)
class Group:
    """One group of options inside a recipe."""

    name: str
    type: type


def groups(recipe_type: type) -> list[Group]:
    """The option groups of a recipe, in the order of its fields."""
    return [Group(f.name, type(f.default)) for f in dataclasses.fields(recipe_type)]


def validated(recipe: Recipe) -> Recipe:
    """Returns the recipe unchanged if its choices are possible together.

    Raises: RecipeError naming the option, its value and the remedy.
    """
    target = recipe.target
    _check_numbers(recipe)
    _check_protocol(recipe)
    _check_rebuild(recipe, target)
    if recipe.output.delete and not recipe.output.save_model:
        raise RecipeError(
            "--delete removes what --save_model wrote, but there is no --save_model; add it or drop --delete"
        )
    _check_places(recipe)
    if "" in recipe.zeroshot.tasks or (recipe.output.save_zeroshot and not recipe.zeroshot.tasks):
        raise RecipeError("--tasks is empty or has an empty part; give a comma list such as boolq,rte")
    for name in ("limit", "num_fewshot", "tasks_path"):
        if getattr(recipe.zeroshot, name) is not None and not recipe.zeroshot.tasks:
            raise RecipeError(
                f"--{name} is about zero-shot tasks, but none are measured; name some with --tasks, or give"
                " --save_zeroshot"
            )
    if not recipe.evaluation.eval_data or "" in recipe.evaluation.eval_data:
        raise RecipeError("--eval_data is empty or has an empty part; give a comma list such as wikitext2,ptb")
    return recipe


def _check_places(recipe: Recipe) -> None:
    for name in ("save_model", "save_ppl", "save_zeroshot"):
        place = getattr(recipe.output, name)
        if place == "" or not _may_be_a_path(place or ""):
            raise RecipeError(
                f"--{name} is empty or no name of a directory ({_short(place)}); name one, or leave the flag out"
            )
    read = [
        ("model", recipe.model.model),
        ("pruned_model", recipe.rebuild.pruned_model),
        ("calibration_data", recipe.calibration.calibration_data),
    ]
    for name, word in [*read, *(("eval_data", word) for word in recipe.evaluation.eval_data)]:
        if not _may_be_a_path(word or ""):
            raise RecipeError(
                f"--{name} {_short(word)} is no name: too long for a file or a directory, or with a zero in it"
            )


def _may_be_a_path(word: str) -> bool:
    return (
        "\0" not in word
        and len(word.encode()) < LONGEST_PATH
        and all(len(part.encode()) <= LONGEST_NAME for part in word.split("/"))
    )


def _short(word: str | None) -> str:
    return repr(word) if word is None or len(word) <= 60 else f"{word[:60]!r}…"


def _check_rebuild(recipe: Recipe, target: Target | None) -> None:
    barber, rebuild = recipe.barber, recipe.rebuild
    if rebuild.prune_barber and isinstance(target, SemiStructured) and barber.prune_granularity != "output1":
        raise RecipeError(
            f"--prune_granularity {barber.prune_granularity} can't keep {target}: only output1 exchanges weights"
            " inside N:M groups"
        )
    if rebuild.pruned_model and not rebuild.prune_barber:
        raise RecipeError(
            "--pruned_model only has a meaning together with --prune_barber; add it, or evaluate with `autoprune eval`"
        )
    if rebuild.pruned_model and recipe.pruning.sparsity_ratio == 0:
        raise RecipeError(
            "--sparsity_ratio 0 only evaluates the dense model, which --pruned_model contradicts; leave out one of"
            " the two"
        )
    if rebuild.pruned_model and recipe.pruning.true_sequential:
        raise RecipeError(
            "--true_sequential is about the first pass, but with --pruned_model somebody else has made it; leave"
            " it out"
        )


def _check_protocol(recipe: Recipe) -> None:
    name = recipe.calibration.protocol
    for option, fixed in PROTOCOLS[name].items() if name else ():
        chosen = recipe.evaluation.eval_data if option == "eval_data" else getattr(recipe.calibration, option)
        if chosen != fixed:
            said, ours = (",".join(v) if isinstance(v, tuple) else v for v in (chosen, fixed))
            raise RecipeError(
                f"--{option} {said} contradicts --protocol {name}, which fixes it at {ours}; leave out one of the two"
            )


def _check_numbers(recipe: Recipe) -> None:
    at_least = [
        ("nsamples", recipe.calibration.nsamples, 1),
        ("seqlen", recipe.calibration.seqlen, 2),
        ("column_block", recipe.sparsegpt.column_block, 1),
        ("batch_size", recipe.run.batch_size, 0),
        ("limit", recipe.zeroshot.limit, 1),
        ("num_fewshot", recipe.zeroshot.num_fewshot, 0),
    ]
    for name, value, lowest in at_least:
        if value is not None and value < lowest:
            raise RecipeError(f"--{name} {value} is too small; it must be at least {lowest}")
    if not 0 <= recipe.barber.threshold <= 1:
        raise RecipeError(f"--threshold {recipe.barber.threshold} is not a fraction; it must lie in [0, 1]")
    if not 0 < recipe.sparsegpt.damping < float("inf"):
        raise RecipeError(f"--damping {recipe.sparsegpt.damping} must be a positive number, such as 0.01")
    choices = [
        ("prune_granularity", recipe.barber.prune_granularity, GRANULARITIES),
        ("prune_metric", recipe.barber.prune_metric, METRICS),
        ("dtype", recipe.model.dtype, DTYPES),
        ("compute_dtype", recipe.barber.compute_dtype, PRECISIONS),
        ("activations", recipe.run.activations, PLACES),
        ("protocol", recipe.calibration.protocol, (None, *PROTOCOLS)),
    ]
    for name, word, allowed in choices:
        if word not in allowed:
            raise RecipeError(f"--{name} {word!r} is unknown; choose from {', '.join(filter(None, allowed))}")
