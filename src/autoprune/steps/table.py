"""The steps by name: the built-in ones, and those of installed packages. Imports no torch until a step is made."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from autoprune.errors import RecipeError, unknown
from autoprune.steps.options import (
    HEALINGS,
    ADMMOptions,
    AllocateOptions,
    ALPSOptions,
    AutoOptions,
    BarberOptions,
    DistillOptions,
    MixedOptions,
    NoOptions,
    ReconstructOptions,
    RefitOptions,
    RIAOptions,
    SparseGPTOptions,
    SwapsOptions,
)

if TYPE_CHECKING:
    from autoprune.steps.base import Step

ENTRY_POINT_GROUP = "autoprune.steps"


@dataclass(frozen=True)
class Entry:
    """Where a step is, and the dataclass whose fields are its options."""

    options: type
    where: str  # module:class
    title: str  # as tables and pages call it
    prunes: bool = True  # whether it chooses a pattern by itself
    refines: bool = False  # whether it goes on with the pattern of an earlier step
    trains: bool = False  # whether it changes norms and biases too
    whole: bool = False  # whether it works on the whole model, after the walk

    def load(self) -> type[Step]:
        """The step's class; imports torch."""
        module, _, name = self.where.partition(":")
        found: type[Step] = getattr(importlib.import_module(module), name)
        return found


BUILT_IN: dict[str, Entry] = {
    "magnitude": Entry(NoOptions, "autoprune.steps.magnitude:Magnitude", "Magnitude"),
    "wanda": Entry(NoOptions, "autoprune.steps.wanda:Wanda", "Wanda"),
    "sparsegpt": Entry(SparseGPTOptions, "autoprune.steps.sparsegpt:SparseGPT", "SparseGPT"),
    "ria": Entry(RIAOptions, "autoprune.steps.ria:RIA", "RIA"),
    "alps": Entry(ALPSOptions, "autoprune.steps.alps:ALPS", "ALPS"),
    "admm": Entry(ADMMOptions, "autoprune.steps.admm:ADMM", "ADMM"),
    "auto": Entry(AutoOptions, "autoprune.steps.auto:Auto", "Automatic choice"),
    "allocate": Entry(AllocateOptions, "autoprune.steps.allocate:Allocate", "Allocation", prunes=False),
    "mixed": Entry(MixedOptions, "autoprune.steps.mixed:Mixed", "Mixed target", prunes=False),
    "swaps": Entry(SwapsOptions, "autoprune.steps.swaps:Swaps", "Swaps", prunes=False, refines=True),
    "refit": Entry(RefitOptions, "autoprune.steps.refit:Refit", "Refit", prunes=False, refines=True),
    "reconstruct": Entry(
        ReconstructOptions,
        "autoprune.steps.reconstruct:Reconstruct",
        "Reconstruct",
        prunes=False,
        refines=True,
        trains=True,
    ),
    "distill": Entry(
        DistillOptions,
        "autoprune.steps.distill:Distill",
        "Distillation",
        prunes=False,
        refines=True,
        trains=True,
        whole=True,
    ),
    "barber": Entry(BarberOptions, "autoprune.steps.barber:Barber", "LLM-Barber", prunes=False, refines=True),
}
PRICED = tuple((first, *rest) for rest in ((), ("barber",)) for first in ("magnitude", "wanda", "sparsegpt"))


@functools.cache
def table() -> Mapping[str, Entry]:
    """All steps by name.

    A package adds one by an entry point of the group ``autoprune.steps``, named as the step is and leading to its
    class, which is its own dataclass of options. Built-in names can't be taken.
    """
    found = dict(BUILT_IN)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name not in found:
            options = entry.load()
            known = {"prunes": True, "refines": False, "trains": False, "whole": False}
            facts = {key: getattr(options, key, usual) for key, usual in known.items()}
            found[entry.name] = Entry(options, entry.value, getattr(options, "title", entry.name), **facts)
    return found


def entry(name: str, flag: str = "--steps") -> Entry:
    """Raises: RecipeError if no step is called so."""
    if name not in table():
        raise RecipeError(f"{flag} {unknown(name, table())}")
    return table()[name]


def check_order(names: Sequence[str], *, given: bool) -> None:
    """``given``: a pattern is there already.

    Raises: RecipeError if a step has no pattern to go on with, or would choose one where there is one; if none of them
    makes one; or if a step would undo half of what an earlier one trained.
    """
    there = given
    for i, (name, following) in enumerate(itertools.zip_longest(names, names[1:])):
        if not entry(name).trains and (training := next((n for n in names[:i] if entry(n).trains), None)):
            raise RecipeError(
                f"{training} trains norms and biases beside the weights, and {name} behind it would measure or restore"
                f" the dense weights behind trained norms; put {training} last"
            )
        if entry(name).whole and following and not entry(following).whole:
            raise RecipeError(f"{name} sees the whole pruned model, so it must come behind {following}")
        if entry(name).refines and not there:
            first = next(n for n, step in BUILT_IN.items() if step.prunes)
            raise RecipeError(f"{name} goes on with a pattern, and no step before it makes one; put {first} before it")
        if there and not entry(name).prunes and not entry(name).refines:
            raise RecipeError(f"{name} prepares the dense weights, so it must come before the steps that prune")
        if there and entry(name).prunes and not entry(name).refines:
            earlier = next((f"{n} before it" for n in names[:i] if entry(n).prunes), "--pruned_model")
            raise RecipeError(
                f"{name} chooses a pattern by itself, and {earlier} gives one already; leave out one of the two"
            )
        there |= entry(name).prunes
    if not there:
        raise RecipeError(f"none of these steps prunes anything: {', '.join(names)}; add one that does")


def option_owners() -> dict[str, str]:
    """By option: the step that it belongs to. Raises: RecipeError if two steps have options of one name."""
    owners: dict[str, str] = {}
    for name, step in table().items():
        for field in dataclasses.fields(step.options):
            if field.name in owners:
                raise RecipeError(
                    f"the steps {owners[field.name]} and {name} both have an option {field.name!r};"
                    " uninstall one of the packages, or rename the option"
                )
            owners[field.name] = name
    return owners


def healing_options() -> dict[str, type]:
    """By step: the options of those that heal smaller models."""
    return {name: BUILT_IN[name].options for names in HEALINGS.values() for name in names}


def make_steps(names: Iterable[str], options: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps of these names; ``options`` holds for some of them an instance of their options."""
    made = []
    for name in names:
        chosen = options.get(name)
        values = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)} if chosen is not None else {}
        made.append(entry(name).load()(**values).beside(options))
    return tuple(made)


def title(name: str) -> str:
    """How pages call a step, or several joined by ``+``; unknown names stand for themselves."""
    return " + ".join(table()[part].title if part in table() else part for part in name.split("+"))
