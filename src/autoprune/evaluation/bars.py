"""The progress bars of lm-evaluation-harness and datasets, told as events: one bar on a terminal, silence where it is
wanted.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from autoprune.events import Emit, Work


@contextmanager
def bars_told(emit: Emit) -> Iterator[None]:
    """Inside, the harness's bars become ``Work`` events, and datasets draws none.

    Harness modules that are imported later draw theirs: it is only looks, so nothing depends on it.
    """
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    class Told(tqdm):
        """Counts as the original does, as often as it would draw."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def display(self, *_args: Any, **_options: Any) -> bool:
            if self.total:
                emit(Work(self.desc.rstrip(": ").lower() or "zero-shot", int(self.n), int(self.total)))
            return True

    users = [
        m
        for name, m in list(sys.modules.items())
        if name.partition(".")[0] == "lm_eval" and vars(m).get("tqdm") is tqdm
    ]
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    for module in users:
        module.tqdm = Told  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.tqdm = tqdm  # type: ignore[attr-defined]
        if not hidden:
            enable_progress_bars()
