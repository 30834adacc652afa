"""One cell in a process of its own: ``python -m autoprune.bench.cell OPTIONS.json RESULT.json``.

Whoever starts it holds its standard input open: when that ends, the starter is gone, and the cell ends too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Clock:
    """Wall seconds of every phase, in the words of the progress that a run tells."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._name, self._since = "", time.perf_counter()

    def __call__(self, event: object) -> None:
        """Listens to the run's events."""
        from autoprune.events import Phase

        if isinstance(event, Phase):
            self.start(event.name)

    def start(self, name: str) -> None:
        """Ends the phase that was under way and begins another."""
        now = time.perf_counter()
        if self._name:
            self.phases[self._name] = self.phases.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now


def main(options: Path, result: Path) -> int:
    """Runs the recipe and writes its row and what it cost; a failure that the user can mend is written too."""
    begin, clock = time.perf_counter(), Clock()
    clock.start("importing")
    from autoprune.errors import AutoPruneError
    from autoprune.recipe.recipe import recipe_from_flat
    from autoprune.results.codec import dump_json
    from autoprune.results.types import Cost
    from autoprune.run.api import run
    from autoprune.run.labels import DENSE

    clock.start("opening")
    outcome: dict[str, Any] = {"error": None, "row": None}
    values = json.loads(options.read_text(encoding="utf-8"))["options"]
    try:
        recipe = recipe_from_flat(values)
        row = run(recipe, clock, measure=True).row
        as_it_is = row.pruning is None  # what the others are compared with, also where somebody has pruned it before
        outcome["row"] = dataclasses.replace(row, method=DENSE[0], target=DENSE[1]) if as_it_is else row
    except AutoPruneError as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    clock.start("")
    outcome["cost"] = Cost(time.perf_counter() - begin, peak_bytes(), device_bytes(), clock.phases)
    draft = result.with_suffix(f".{os.getpid()}.writing")
    draft.write_text(dump_json(outcome), encoding="utf-8")
    draft.replace(result)
    return 0


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_bytes() -> int:
    """Peak memory of this process on CUDA devices together."""
    import torch

    return (
        sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
        if torch.cuda.is_initialized()
        else 0
    )


def end_with_the_starter() -> None:
    """Ends this process when its standard input does."""
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the interpreter comes to its end
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
