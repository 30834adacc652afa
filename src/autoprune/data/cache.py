"""What was cut or measured once is kept for later runs, in a folder that a benchmark or the user names.

The folder is ``$AUTOPRUNE_CACHE``; without that variable perplexities alone are kept, in the user's own cache. Every
entry is a file of its own that appears whole, so that several processes can share a folder.
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


def figures_folder() -> Path | None:
    """Where perplexities are kept: as above, else in the user's cache ($XDG_CACHE_HOME, or ~/.cache); None for a user
    who has none.
    """
    if folder := cache_folder():
        return folder
    if (
        named := Path(os.environ.get("XDG_CACHE_HOME", ""))
    ).is_absolute():  # others are to be ignored, its authors say
        return named / "autoprune"
    try:
        return Path.home() / ".cache" / "autoprune"
    except RuntimeError:  # nobody knows where the user's home is
        return None


def cached_windows(key: Mapping[str, object] | None, make: Callable[[], Windows], emit: Emit = silent) -> Windows:
    """The windows that ``key`` describes: from the folder, else made, and kept there.

    The key must hold all that the windows depend on; without one nothing is kept. What can't be read is made anew; a
    folder that can't be written is told of, and nothing is lost but time.
    """
    folder = cache_folder()
    if folder is None or key is None:
        return make()
    path = _file(folder, "windows", key, "safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            return Windows(file.get_tensor("input_ids"), json.loads(file.metadata()["provenance"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    windows = make()
    with _told(emit, folder), draft(path) as made:
        save_file({"input_ids": windows.ids}, made, metadata={"provenance": json.dumps(windows.provenance)})
    return windows


def recall(folder: Path | None, kind: str, key: Mapping[str, object]) -> dict[str, Any] | None:
    """What is kept under this very key; None if nothing is, or nothing that can be read."""
    if folder is None:
        return None
    try:
        kept = json.loads(_file(folder, kind, key, "json").read_text(encoding="utf-8"))
        return dict(kept["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(
    folder: Path | None, kind: str, key: Mapping[str, object], value: Mapping[str, Any], emit: Emit = silent
) -> None:
    """Keeps plain values for later runs; a folder that can't be written is told of."""
    if folder is not None:
        with _told(emit, folder):
            write_text(_file(folder, kind, key, "json"), json.dumps({"key": key, "value": value}, indent=2))


@contextlib.contextmanager
def _told(emit: Emit, folder: Path) -> Iterator[None]:
    """A cache that is full or of no use stops no run."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        named = f"{VARIABLE}={folder}" if cache_folder() else str(folder)
        emit(
            Notice(
                f"{named}: can't write there ({error}), so nothing is kept for later runs"
                f"{'' if cache_folder() else f'; {VARIABLE}=DIR names another place'}"
            )
        )


def _file(folder: Path, kind: str, key: Mapping[str, object], ending: str) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return folder / f"{kind}-{name}.{ending}"
