"""What the processes of ``test_torchrun.py`` run, started by torchrun or alone: ``python rank_program.py ways|fatal
ARGUMENT…``.

``ways MODEL TEXT FOLDER`` prunes in several ways and notes in FOLDER how many samples this process ran and what errors
it met. ``fatal FLAG…`` is ``main.py FLAG…``, but process 1 is killed while it works on the second block.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import autoprune
from autoprune.errors import AutoPruneError
from autoprune.model.calls import BlockCall

RANK = int(os.environ.get("RANK", "0"))
SEQLEN, SAMPLES = 24, 8  # the replay check runs on shorter windows
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"prune_method": "magnitude"},
    "wanda": {"prune_method": "wanda"},
    "sparsegpt": {"prune_method": "sparsegpt"},
    "barber": {"prune_method": "wanda", "prune_barber": True, "prune_granularity": "layer", "threshold": 0.2},
    "block": {
        "prune_method": "wanda",
        "prune_barber": True,
        "prune_granularity": "block",
        "threshold": 0.2,
        "activations": "disk",
    },
}
COMMON: dict[str, Any] = {"sparsity_ratio": 0.5, "nsamples": SAMPLES, "seqlen": SEQLEN, "batch_size": 2}
# On process 1 only, but for the first.
FAULTS: dict[str, dict[str, Any]] = {
    "crowded": {"nsamples": 1},
    "device": {"device": "cuda:7"},
    "options": {"seed": 5},
    "missing": {"model": "nowhere"},
}


@contextmanager
def each_call(do: Callable[[nn.Module, torch.Tensor], None]) -> Iterator[None]:
    """Tells of every block that is run, and on what."""
    call = BlockCall.__call__

    def told(self: BlockCall, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        do(block, hidden)
        return call(self, block, hidden)

    with mock.patch.object(BlockCall, "__call__", told):
        yield


def ways(model: str, text: str, folder: Path) -> None:
    """Every way in turn; the processes find each other anew each time."""
    samples: list[int] = []
    notes: dict[str, Any] = {}
    with each_call(lambda _, hidden: samples.append(hidden.shape[0] if hidden.shape[1] == SEQLEN else 0)):
        for name, options in WAYS.items():
            samples.clear()
            places = {"save_model": folder / name, "save_ppl": folder / f"{name}-ppl"}
            result = autoprune.prune(model, calibration_data=text, eval_data=text, **places, **COMMON, **options)
            notes[name] = {
                "samples": sum(samples),
                "measured": [p.perplexity for p in result.row.perplexity],
                "sparsity": result.row.sparsity,
            }
    if "RANK" in os.environ:
        notes["errors"] = {
            name: fault(model, text, **(options if RANK or name == "crowded" else {}))
            for name, options in FAULTS.items()
        }
        with (
            mock.patch("autoprune.run.api.make_plan", side_effect=TypeError("a defect")) if RANK else mock.MagicMock()
        ):
            notes["errors"]["defect"] = fault(model, text)
    (folder / f"rank-{RANK}.json").write_text(json.dumps(notes), encoding="utf-8")


def fault(usual: str, text: str, **options: Any) -> str:
    """What a run that must fail says."""
    try:
        autoprune.prune(**{"model": usual, "calibration_data": text, "prune_method": "wanda", **COMMON, **options})
    except (AutoPruneError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fatal(flags: list[str]) -> int:
    """``main.py``, until the second block runs on process 1."""
    seen: list[int] = []

    def die(block: nn.Module, hidden: torch.Tensor) -> None:
        if hidden.shape[1] == SEQLEN and id(block) not in seen:
            seen.append(id(block))
            if len(seen) == 2 and RANK == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    from autoprune.cli.main import classic

    with each_call(die):
        return classic(flags)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "ways":
        ways(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        sys.exit(fatal(sys.argv[2:]))
