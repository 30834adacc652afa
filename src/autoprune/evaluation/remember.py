"""Perplexities that need not be measured again: of dense models, where a cache is named, and of a run that was
stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from autoprune.data.cache import cached_json
from autoprune.data.windows import Windows
from autoprune.errors import OutputError
from autoprune.events import Emit, Notice, silent
from autoprune.results.codec import dump_json, to_jsonable
from autoprune.results.types import PerplexityResult


def remembered(
    model: Mapping[str, object], windows: Windows, source: str, make: Callable[[], PerplexityResult]
) -> PerplexityResult:
    """The perplexity of this very model (fingerprint of its weights, precision, device, versions) on these very
    windows.
    """
    kept = cached_json("dense", {**model, "windows": windows.fingerprint}, lambda: dict(to_jsonable(make())))
    return dataclasses.replace(PerplexityResult(**kept), source=source)


class Notes:
    """What a run has measured so far, in a file until all is measured and saved; ``--resume`` takes up what is there.

    ``path`` is None for a run that saves nothing. What can't be read, or is of another model, precision or version, is
    measured anew.
    """

    def __init__(self, path: Path | None, *, resume: bool, emit: Emit = silent) -> None:
        self._path, self._emit = path, emit
        self._kept: list[dict[str, object]] = _read(path) if path and resume else []

    def measured(
        self, model: Mapping[str, object], windows: Windows, source: str, make: Callable[[], PerplexityResult]
    ) -> PerplexityResult:
        """The perplexity of this very model on these very windows: noted before, or made and noted now.

        An empty ``model`` is one that can't be told from others: nothing is noted of it.
        Raises: OutputError if it can't be noted.
        """
        key = json.loads(dump_json({**model, "windows": windows.fingerprint}))
        for note in self._kept if model else ():
            if note["key"] == key:
                self._emit(Notice(f"perplexity {source}: measured before"))
                return dataclasses.replace(PerplexityResult(**note["value"]), source=source)  # type: ignore[arg-type]
        result = make()
        if model:
            self._kept.append({"key": key, "value": to_jsonable(result)})
            self._write()
        return result

    def forget(self) -> None:
        """All is saved where it belongs."""
        if self._path:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._path is None:
            return
        draft = self._path.with_name(self._path.name + ".writing")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(dump_json(self._kept), encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            raise OutputError(
                f"{self._path.parent}: can't write there ({error}); free some space or choose another place"
            ) from error


def _read(path: Path) -> list[dict[str, object]]:
    try:
        return [{"key": note["key"], "value": note["value"]} for note in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return []
