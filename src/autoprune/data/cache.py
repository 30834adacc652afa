"""What was cut or measured once is kept for later runs, in a folder that a benchmark or the user names.

The folder is ``$AUTOPRUNE_CACHE``; without that variable nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autoprune.data.windows import Windows
from autoprune.storage.files import draft, write_text

VARIABLE = "AUTOPRUNE_CACHE"


def cache_folder() -> Path | None:
    """Where things are kept; None if nowhere."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def cached_windows(key: Mapping[str, object] | None, make: Callable[[], Windows]) -> Windows:
    """The windows that ``key`` describes: from the folder, else made, and kept there.

    The key must hold all that the windows depend on; without one nothing is kept. What can't be read is made anew.
    """
    path = _path("windows", key, "safetensors") if key is not None else None
    if path is None:
        return make()
    try:
        with safe_open(path, framework="pt") as file:
            return Windows(file.get_tensor("input_ids"), json.loads(file.metadata()["provenance"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        windows = make()
    with draft(path) as made:
        save_file({"input_ids": windows.ids}, made, metadata={"provenance": json.dumps(windows.provenance)})
    return windows


def cached_json(kind: str, key: Mapping[str, object], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same for plain values."""
    path = _path(kind, key, "json")
    if path is None:
        return make()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["value"])
    except (OSError, ValueError, KeyError, TypeError):
        value = make()
    write_text(path, json.dumps({"key": key, "value": value}, indent=2))
    return value


def _path(kind: str, key: Mapping[str, object], ending: str) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return folder / f"{kind}-{name}.{ending}" if folder else None
