"""One pruning run while it is under way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from autoprune.events import Emit
from autoprune.machine.ranks import Ranks
from autoprune.recipe.recipe import Recipe
from autoprune.run.open import Subject
from autoprune.run.plan import Plan
from autoprune.storage.result import Workplace


@dataclass
class Run:
    """One pruning run while it is under way."""

    recipe: Recipe
    plan: Plan
    emit: Emit
    workplace: Workplace | None  # only rank 0 has one
    seconds: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    surveys: dict[str, Any] = field(default_factory=dict)  # by step: what it found before anything was pruned

    @property
    def subject(self) -> Subject:
        """The model."""
        return self.plan.subject

    @property
    def ranks(self) -> Ranks:
        """The processes that share the run."""
        return self.plan.ranks


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes under ``name`` how long it lasted, in seconds of wall time."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
