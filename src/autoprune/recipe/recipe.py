"""One run in words: groups of options, and the steps with theirs.

This file is the one source of the command-line flags (``cli/flags.py``), of the TOML keys and of the recipe that is
written into ``autoprune.json``. It imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoprune.core.sparsity import SemiStructured, Target, check_ratio, parse_target
from autoprune.errors import RecipeError
from autoprune.recipe.checks import (
    check_bounds,
    check_places,
    check_protocol,
    check_tasks_chosen,
    made,
    place_word,
)
from autoprune.recipe.files import STEPS, flat_of, overridden, read_flat
from autoprune.recipe.options import (
    PROTOCOLS,
    ZEROSHOT_TASKS,
    CalibrationOptions,
    EvaluationOptions,
    ModelOptions,
    OutputOptions,
    PruningOptions,
    RunOptions,
    ZeroShotOptions,
)
from autoprune.recipe.values import with_sparsity
from autoprune.steps.classic import StepOptions, step_names, with_effort
from autoprune.steps.table import check_order, entry, option_owners, table

# By group: where things from the hub are kept changes no result.
CACHES = (("model", "cache_dir"), ("calibration", "datasets_cache_dir"))


@dataclass(frozen=True, repr=False)
class Recipe:
    """One run: groups of options that together say everything about it.

    ``Recipe.of(model="demo", sparsity=0.5, …)`` makes one of flat options, ``Recipe.read(path)`` reads one; then
    ``autoprune.run(recipe)``.
    """

    model: ModelOptions = ModelOptions()
    pruning: PruningOptions = PruningOptions()
    chosen: StepOptions = StepOptions()
    step_options: Mapping[str, Any] = field(default_factory=dict)  # by step: its options, an instance of its dataclass
    calibration: CalibrationOptions = CalibrationOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    zeroshot: ZeroShotOptions = ZeroShotOptions()
    output: OutputOptions = OutputOptions()
    run: RunOptions = RunOptions()
    # By flag and word: what stands for texts that were handed over in Python and are in no file (``data/handed.py``).
    held: Mapping[tuple[str, str], Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, **options: Any) -> Recipe:
        """A recipe of options by name, as ``autoprune.prune`` takes them, with those of installed steps.

        Raises: RecipeError naming the first option that nobody has, or a value that can't be used.
        """
        return recipe_from_flat(options)

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> Recipe:
        """The recipe in a TOML or JSON file, or in a result's ``autoprune.json``; ``options`` go over it.

        Raises: RecipeError if the file can't be read, holds no recipe, or one that can't be used.
        """
        return recipe_from_flat(overridden(read_flat(place_word(path, "a recipe's path")), options))

    def __repr__(self) -> str:
        """All that is not as usual, as ``of`` takes it."""
        groups = [self.model, self.pruning, self.chosen, *self.step_options.values(), self.calibration]
        groups += [self.evaluation, self.zeroshot, self.output, self.run]
        given = ((f, getattr(group, f.name)) for group in groups for f in dataclasses.fields(group))
        return f"Recipe.of({', '.join(f'{f.name}={value!r}' for f, value in given if value != f.default)})"

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps, in their order."""
        return step_names(self.chosen)

    @property
    def target(self) -> Target | None:
        """The sparsity asked for; None when only the dense model is evaluated, or when a given pattern is kept as it
        is.

        Raises: RecipeError if ratio and type contradict each other.
        """
        if self.chosen.pruned_model and self.pruning.sparsity_type == "unstructured":
            check_ratio(self.pruning.sparsity_ratio)
            return None
        return parse_target(self.pruning.sparsity_type, self.pruning.sparsity_ratio)

    @property
    def ratios(self) -> dict[str, float]:
        """By pattern of layers' names: the ratio that takes the target's place there.

        Raises: RecipeError for an entry that can't be read, or a target that is N:M.
        """
        found: dict[str, float] = {}
        for given in self.pruning.ratio:
            pattern, _, word = given.rpartition("=")
            try:
                found.pop(pattern, None)  # the last one counts
                found[pattern] = float(word)
            except ValueError as error:
                raise RecipeError(f"--ratio {given!r} is not PATTERN=R, such as *.mlp.*=0.6") from error
            if not pattern or not 0 < found[pattern] < 1:
                raise RecipeError(
                    f"--ratio {given!r}: name a pattern and a ratio between 0 and 1, such as *.mlp.*=0.6; --ignore"
                    " leaves layers dense"
                )
        if found and isinstance(self.target, SemiStructured):
            raise RecipeError(f"--ratio gives some layers other ratios, which {self.target} leaves no room for")
        return found

    def options_of(self, step: str) -> Any:
        """A step's options: those given, or their defaults."""
        return self.step_options.get(step) or entry(step).options()

    def with_others(self, step: str) -> list[Any]:
        """A step's options, and those of the steps that it takes along."""
        own = self.options_of(step)
        return [own, *(self.options_of(name) for name in getattr(own, "taken_along", ()) if name in table())]

    def with_model(self, model: str) -> Recipe:
        """The same recipe for another model, whose revision nobody has named."""
        revision = self.model.revision if model == self.model.model else None
        return dataclasses.replace(self, model=dataclasses.replace(self.model, model=model, revision=revision))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they go into ``autoprune.json``: the groups, and the steps with their options."""
        groups = {group.name: dataclasses.asdict(getattr(self, group.name)) for group in _static_groups()}
        del groups["chosen"]
        steps = [
            {
                "name": name,
                **{k: v for options in self.with_others(name) for k, v in dataclasses.asdict(options).items()},
            }
            for name in self.steps
        ]
        given = {"pruned_model": self.chosen.pruned_model} if self.chosen.pruned_model else {}
        return {**groups, STEPS: steps, **({"given": given} if given else {})}


@dataclass(frozen=True)
class Group:
    """A dataclass of options: its name in the recipe, or the name of the step that it belongs to."""

    name: str
    type: type
    step: bool = False


def groups() -> list[Group]:
    """All groups of options, in the order in which help lists them: those of steps follow the choice of steps.

    Raises: RecipeError if two steps have options of one name.
    """
    option_owners()
    steps = [Group(name, step.options, step=True) for name, step in table().items()]
    found: list[Group] = []
    for group in _static_groups():
        found.append(group)
        if group.type is StepOptions:
            found += [step for step in steps if dataclasses.fields(step.type)]
    return found


def _static_groups() -> list[Group]:
    return [Group(f.name, type(f.default)) for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING]


def recipe_from_flat(values: Mapping[str, Any]) -> Recipe:
    """Builds a recipe from flat ``{field: value}``; fields that are absent keep their defaults.

    Raises: RecipeError naming the first key that no option has, or a value that can't be used.
    """
    known = {f.name for group in groups() for f in dataclasses.fields(group.type)}
    if unknown := sorted(set(values) - known - {"ratios"}):
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RecipeError(f"unknown option {unknown[0]!r}; {hint}known options: {', '.join(sorted(known))}")
    values = with_sparsity(with_effort(values))
    values = {**PROTOCOLS.get(str(values.get("protocol")), {}), **values}
    if values.get("save_zeroshot"):
        values = {"tasks": ZEROSHOT_TASKS, **values}
    parts: dict[str, Any] = {}
    steps: dict[str, Any] = {}
    for group in groups():
        options: Any = made(group.type, values)
        if not group.step:
            parts[group.name] = options
        elif any(f.name in values for f in dataclasses.fields(group.type)):
            steps[group.name] = options
    return validated(Recipe(**parts, step_options=steps))


def recipe_from_record(record: Mapping[str, Any]) -> Recipe:
    """The recipe that ``to_dict`` described, or that a record of format 1 holds. Raises: RecipeError if it is none."""
    return recipe_from_flat(flat_of(record))


def validated(recipe: Recipe) -> Recipe:
    """Returns the recipe unchanged if its choices are possible together.

    Raises: RecipeError naming the option, its value and the remedy.
    """
    target = recipe.target
    static: Iterable[Any] = [getattr(recipe, group.name) for group in _static_groups()]
    for options in [*static, *recipe.step_options.values()]:
        check_bounds(options)
    _ = recipe.ratios
    check_protocol(recipe.calibration, recipe.evaluation)
    _check_steps(recipe, target)
    if recipe.output.delete and not recipe.output.save_model:
        raise RecipeError(
            "--delete removes what --save_model wrote, but there is no --save_model; add it or drop --delete"
        )
    if recipe.evaluation.compare and target is None and not recipe.chosen.pruned_model:
        raise RecipeError(
            "--compare sets a pruned model beside the dense one, but nothing is pruned at ratio 0; leave it out, or"
            " compare two models that there are with `autoprune compare DENSE PRUNED`"
        )
    check_places(
        {name: getattr(recipe.output, name) for name in ("save_model", "save_ppl", "save_zeroshot")},
        {
            "model": recipe.model.model,
            "pruned_model": recipe.chosen.pruned_model,
            "calibration_data": recipe.calibration.calibration_data,
        },
        recipe.evaluation.eval_data,
    )
    check_tasks_chosen(recipe.zeroshot, saved=bool(recipe.output.save_zeroshot))
    if not recipe.evaluation.eval_data or "" in recipe.evaluation.eval_data:
        raise RecipeError("--eval_data is empty or has an empty part; give a comma list such as wikitext2,ptb")
    return recipe


def _check_steps(recipe: Recipe, target: Target | None) -> None:
    chosen = recipe.chosen
    if chosen.pruned_model and not recipe.steps:
        raise RecipeError(
            "--pruned_model only has a meaning together with a step that goes on with it, such as --prune_barber; add"
            " it, or evaluate with `autoprune eval`"
        )
    flag = "--steps" if chosen.steps else "--prune_method"
    for name in recipe.steps:
        entry(name, flag)
        check = getattr(recipe.options_of(name), "check", None)
        if check is not None and dataclasses.fields(recipe.options_of(name)):
            check(target)
    check_order(recipe.steps, given=chosen.pruned_model is not None)
    if chosen.pruned_model and recipe.pruning.ratio:
        raise RecipeError(
            "--ratio is about choosing a pattern, but --pruned_model gives one; leave out one of the two"
        )
    if chosen.pruned_model and recipe.pruning.sparsity_ratio == 0:
        raise RecipeError(
            "--sparsity_ratio 0 only evaluates the dense model, which --pruned_model contradicts; leave out one of the"
            " two"
        )
    if chosen.pruned_model and recipe.pruning.true_sequential:
        raise RecipeError(
            "--true_sequential is about the first pass, but with --pruned_model somebody else has made it; leave it"
            " out"
        )
