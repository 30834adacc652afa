"""One cell in a process of its own: ``python -m autoprune.benchmark.cell OPTIONS.json RESULT.json``."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(options: Path, result: Path) -> int:
    """Runs the recipe and writes its row, wall time and peak memory; a failure that the user can mend is written too."""
    start = time.perf_counter()
    from autoprune.api import run
    from autoprune.errors import AutoPruneError
    from autoprune.recipe import recipe_from_flat
    from autoprune.report.results import dump_json

    loaded = time.perf_counter() - start
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(options.read_text()).items()}
    outcome: dict[str, Any] = {"error": None, "row": None}
    try:
        outcome["row"] = run(recipe_from_flat(values), measure=True).row
    except AutoPruneError as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome |= {"seconds": time.perf_counter() - start, "import_seconds": loaded, "peak_bytes": peak_bytes()}
    draft = result.with_suffix(".writing")
    draft.write_text(dump_json(outcome), encoding="utf-8")
    draft.replace(result)
    return 0


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
