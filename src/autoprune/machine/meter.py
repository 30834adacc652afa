"""What a run takes: wall seconds by phase, and the most memory that its process held. Imports no torch by itself."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

from autoprune.events import Emit, Event, Phase, silent

MARKS = Path("/proc/self")  # Linux alone keeps a high-water mark that can be set back


class Clock:
    """Wall seconds of every phase, in the words of the progress that a run tells."""

    def __init__(self, emit: Emit = silent, first: str = "") -> None:
        """``emit``: who else listens; ``first``: the phase that begins now."""
        self.phases: dict[str, float] = {}
        self._emit = emit
        self._name, self._begin = first, time.perf_counter()
        self._since = self._begin

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._begin

    @property
    def so_far(self) -> dict[str, float]:
        """The phases, that under way among them."""
        self.start(self._name)
        return dict(self.phases)

    def __call__(self, event: Event) -> None:
        """Listens to the run's events."""
        if isinstance(event, Phase):
            self.start(event.name)
        self._emit(event)

    def start(self, name: str) -> None:
        """Ends the phase that was under way and begins another; none for an empty name."""
        now = time.perf_counter()
        if self._name:
            self.phases[self._name] = self.phases.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now


def forget_peaks() -> None:
    """From now on peaks are counted anew where the system allows it; elsewhere they are those of the whole process."""
    with contextlib.suppress(OSError):
        (MARKS / "clear_refs").write_text("5", encoding="ascii")  # proc(5): sets back the peak resident set size
    if (torch := _torch_with_devices()) is not None:
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (MARKS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_bytes() -> int:
    """Peak memory of this process on CUDA devices together."""
    torch = _torch_with_devices()
    return 0 if torch is None else sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))


def _torch_with_devices() -> Any:
    """The module, if it is imported and at work on a device."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
