"""What was cut or measured once is kept for later runs, in a folder that a benchmark or the user names.

The folder is ``$AUTOPRUNE_CACHE``; without that variable nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autoprune.data.windows import Windows
from autoprune.events import Emit, Notice, silent
from autoprune.storage.files import draft, write_text

VARIABLE = "AUTOPRUNE_CACHE"


def cache_folder() -> Path | None:
    """Where things are kept; None if nowhere."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def cached_windows(key: Mapping[str, object] | None, make: Callable[[], Windows], emit: Emit = silent) -> Windows:
    """The windows that ``key`` describes: from the folder, else made, and kept there.

    The key must hold all that the windows depend on; without one nothing is kept. What can't be read is made anew; a
    folder that can't be written is told of, and nothing is lost but time.
    """
    path = _path("windows", key, "safetensors") if key is not None else None
    if path is None:
        return make()
    try:
        with safe_open(path, framework="pt") as file:
            return Windows(file.get_tensor("input_ids"), json.loads(file.metadata()["provenance"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    windows = make()
    with _told(emit), draft(path) as made:
        save_file({"input_ids": windows.ids}, made, metadata={"provenance": json.dumps(windows.provenance)})
    return windows


def cached_json(
    kind: str, key: Mapping[str, object], make: Callable[[], dict[str, Any]], emit: Emit = silent
) -> dict[str, Any]:
    """The same for plain values."""
    path = _path(kind, key, "json")
    if path is None:
        return make()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["value"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = make()
    with _told(emit):
        write_text(path, json.dumps({"key": key, "value": value}, indent=2))
    return value


@contextlib.contextmanager
def _told(emit: Emit) -> Iterator[None]:
    """A cache that is full or of no use stops no run."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        emit(Notice(f"{VARIABLE}={cache_folder()}: can't write there ({error}), so nothing is kept for later runs"))


def _path(kind: str, key: Mapping[str, object], ending: str) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return folder / f"{kind}-{name}.{ending}" if folder else None
