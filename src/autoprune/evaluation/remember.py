"""Measurements that need not be made again: of dense models, where a cache is named, and of a run that was stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoprune.data.cache import cached_json
from autoprune.data.windows import Windows
from autoprune.events import Emit, Notice, silent
from autoprune.results.codec import dump_json, to_jsonable
from autoprune.results.types import PerplexityResult
from autoprune.storage.files import write_text, writing_to


def remembered(
    model: Mapping[str, object],
    windows: Windows,
    source: str,
    make: Callable[[], PerplexityResult],
    emit: Emit = silent,
) -> PerplexityResult:
    """The perplexity of this very model (fingerprint of its weights, precision, device, versions) on these very
    windows.
    """
    kept = cached_json("dense", {**model, "windows": windows.fingerprint}, lambda: dict(to_jsonable(make())), emit)
    return dataclasses.replace(PerplexityResult(**kept), source=source)


class Notes:
    """What a run has measured so far, in a file until all is measured and saved; ``--resume`` takes up what is there.

    ``path`` is None for a run that saves nothing. What can't be read, or is of another model, precision or version, is
    measured anew.
    """

    def __init__(self, path: Path | None, *, resume: bool, emit: Emit = silent) -> None:
        self._path, self._emit = path, emit
        self._kept: list[dict[str, Any]] = _read(path) if path and resume else []

    def measured(
        self, model: Mapping[str, object], windows: Windows, source: str, make: Callable[[], PerplexityResult]
    ) -> PerplexityResult:
        """The perplexity of this very model on these very windows: noted before, or made and noted now.

        An empty ``model`` is one that can't be told from others: nothing is noted of it.
        Raises: OutputError if it can't be noted.
        """
        key = {**model, "windows": windows.fingerprint}
        if model and (kept := self.find(key)):
            self._emit(Notice(f"perplexity {source}: measured before"))
            return dataclasses.replace(PerplexityResult(**kept), source=source)
        result = make()
        if model:
            self.add(key, result)
        return result

    def find(self, key: Mapping[str, object]) -> dict[str, Any] | None:
        """What was noted under this very key, as plain values; None if nothing was."""
        wanted = json.loads(dump_json(key))
        return next((note["value"] for note in self._kept if note["key"] == wanted), None)

    def add(self, key: Mapping[str, object], result: object) -> None:
        """Notes a result. Raises: OutputError if it can't be noted."""
        self._kept.append({"key": json.loads(dump_json(key)), "value": to_jsonable(result)})
        self._write()

    def forget(self) -> None:
        """All is saved where it belongs."""
        if self._path:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._path is None:
            return
        with writing_to(self._path.parent):
            write_text(self._path, dump_json(self._kept))


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [{"key": note["key"], "value": note["value"]} for note in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return []
