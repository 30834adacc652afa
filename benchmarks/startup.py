"""Seconds from the command to the first block, beside importing torch and transformers and reading the model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

MAIN = Path(__file__).resolve().parent.parent / "main.py"
FLOOR = (
    "import sys, torch; from transformers import AutoModelForCausalLM;"
    " AutoModelForCausalLM.from_pretrained(sys.argv[1])"
)
FIRST_BLOCK = "pruning"  # the line that says that the loop over the blocks begins


def startup_seconds(model: PreTrainedModel, ids: Tensor, runs: int, clock: str) -> Iterator[tuple[float, float]]:
    """Pairs (floor, program), each of whole processes; the files are in the page cache. ``clock`` is wall or
    processor.
    """
    now = time.perf_counter if clock == "wall" else _children
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model.save_pretrained(place / "model")
        save_file({"input_ids": ids.contiguous()}, place / "tokens.safetensors")
        flags = [
            "--model",
            str(place / "model"),
            "--calibration_data",
            str(place / "tokens.safetensors"),
            "--sparsity_ratio",
            "0.5",
        ]
        flags += [
            "--nsamples",
            str(len(ids)),
            "--seqlen",
            str(ids.shape[1]),
            "--save_model",
            str(place / "out"),
            "--overwrite",
        ]
        for count in range(runs + 1):
            pair = _floor(place / "model", now), _until_first_block(flags, now)
            if count:
                yield pair


def _children() -> float:
    """Processor seconds of all processes that were started here and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _floor(model: Path, now: Callable[[], float]) -> float:
    start = now()
    subprocess.run([sys.executable, "-c", FLOOR, str(model)], check=True, stderr=subprocess.DEVNULL)
    return now() - start


def _until_first_block(flags: list[str], now: Callable[[], float]) -> float:
    start = now()
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.strip() == FIRST_BLOCK:
            seconds = now() - start
            process.kill()
            process.wait()
            return seconds or now() - start  # the processor time of a child counts when it has ended
    raise RuntimeError("the program ended before its first block:\n" + "".join(said))
