"""Measurements that need not be made again: those of earlier runs, and of a run that was stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoprune.data.cache import figures_folder, keep, recall
from autoprune.data.windows import Windows
from autoprune.events import Emit, Notice, silent
from autoprune.results.codec import dump_json, to_jsonable
from autoprune.results.types import PerplexityResult
from autoprune.storage.files import write_text, writing_to


class Memory:
    """Perplexities of models that can be told from all others, kept for later runs.

    ``model`` holds all that they depend on besides the windows (fingerprint of the weights, or of all that they were
    made from; precision, device, versions); empty: nothing is known of it, and nothing kept.
    """

    def __init__(self, kind: str, model: Mapping[str, object], emit: Emit = silent) -> None:
        self._kind, self._model, self._emit = kind, model, emit

    def recall(self, windows: Windows, source: str) -> PerplexityResult | None:
        """The perplexity on these very windows, if an earlier run has kept it; ``source`` is their name now."""
        kept = recall(figures_folder(), self._kind, self._key(windows)) if self._model else None
        return _result(kept, source)

    def keep(self, windows: Windows, result: PerplexityResult) -> None:
        """For later runs; a cache that can't be written is told of."""
        if self._model:
            keep(figures_folder(), self._kind, self._key(windows), to_jsonable(result), self._emit)

    def _key(self, windows: Windows) -> dict[str, object]:
        # Bits per byte depend on the text as well, of which token ids from Python know nothing.
        return {**self._model, "windows": windows.fingerprint, "utf8_bytes": windows.provenance.get("utf8_bytes")}


def _result(kept: Mapping[str, Any] | None, source: str) -> PerplexityResult | None:
    try:
        return None if kept is None else dataclasses.replace(PerplexityResult(**kept), source=source)
    except TypeError:  # of another version, or damaged
        return None


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
