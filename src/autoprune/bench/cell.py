"""One cell in a process of its own: ``python -m autoprune.bench.cell OPTIONS.json RESULT.json``.

Whoever starts it holds its standard input open: when that ends, the starter is gone, and the cell ends too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from autoprune.machine.meter import Clock, device_bytes, peak_bytes


def main(options: Path, result: Path) -> int:
    """Runs the recipe and writes its row and what it cost; a failure that the user can mend is written too."""
    begin, clock = time.perf_counter(), Clock()
    clock.start("importing")
    from autoprune.errors import AutoPruneError
    from autoprune.recipe.recipe import recipe_from_flat
    from autoprune.results.codec import dump_json
    from autoprune.results.types import Cost
    from autoprune.results.variants import DENSE
    from autoprune.run.api import run

    clock.start("opening")
    outcome: dict[str, Any] = {"error": None, "row": None}
    values = json.loads(options.read_text(encoding="utf-8"))["options"]
    try:
        recipe = recipe_from_flat(values)
        row = run(recipe, clock, measure=True, dense=False).row  # the dense model has a cell of its own
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


def end_with_the_starter() -> None:
    """Ends this process when its standard input does."""
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the interpreter comes to its end
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
