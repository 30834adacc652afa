"""One run from beginning to end: open, plan, prune, measure; and what it would need.

``autoprune.run(recipe)`` is ``run.api.run``: the function shares its name with this room, so the room can be called.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that runs recipes."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """``run.api.run``, which see."""
        from autoprune.run.api import run

        return run(*arguments, **options)


sys.modules[__name__].__class__ = _Room
