"""How much more memory some work takes at its peak than was taken before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from autoprune.machine.allocator import return_what_is_free

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # proc(5): writing 5 resets VmHWM


def peak_growth(work: Callable[[], object], device: torch.device) -> int | None:
    """Runs ``work``; bytes on the device, at the peak, above those before it. On a CPU the process's resident memory,
    as Linux keeps it. None where nobody keeps it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    return_what_is_free()
    try:
        CLEAR.write_text("5")
        first = _resident()
    except (OSError, StopIteration):  # another system, or a container that forbids it or keeps nothing
        first = None
    work()
    return None if first is None or device.type != "cpu" else _resident() - first


def _resident() -> int:
    """The highest resident memory since it was last reset, in bytes."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
