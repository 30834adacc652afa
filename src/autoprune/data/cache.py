"""Windows that were cut once are kept for the other cells of a benchmark, in a folder that the benchmark names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from autoprune.data.windows import Windows

VARIABLE = "AUTOPRUNE_WINDOWS_CACHE"


def cached_windows(key: dict[str, object], make: Callable[[], Windows]) -> Windows:
    """The windows that ``key`` describes: from the folder named by the environment, else made, and kept there.

    Without that variable nothing is kept. The key must hold all that the windows depend on.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return make()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    path = Path(folder) / f"{name}.safetensors"
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            return Windows(file.get_tensor("input_ids"), json.loads(file.metadata()["provenance"]))
    windows = make()
    draft = path.with_suffix(f".{os.getpid()}.writing")
    save_file({"input_ids": windows.ids}, draft, metadata={"provenance": json.dumps(windows.provenance)})
    draft.replace(path)
    return windows
