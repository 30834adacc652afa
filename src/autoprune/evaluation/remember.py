"""Perplexities of dense models, which many runs need and none changes, are measured once where a cache is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from autoprune.data.cache import cached_json
from autoprune.data.windows import Windows
from autoprune.report.results import PerplexityResult, to_jsonable


def remembered(model: Mapping[str, object], windows: Windows, source: str, make: Callable[[], PerplexityResult]) -> PerplexityResult:
    """The perplexity of this very model (fingerprint of its weights, precision, device, versions) on these very windows."""
    kept = cached_json("dense", {**model, "windows": windows.fingerprint}, lambda: dict(to_jsonable(make())))
    return dataclasses.replace(PerplexityResult(**kept), source=source)
