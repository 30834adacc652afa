"""What `--compute_dtype bfloat16` changes: agreement of patterns with float32, perplexity, and time, on a model with
its texts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import autoprune
from autoprune.model.anatomy import examine

SETTINGS: list[dict[str, Any]] = [
    {"prune_method": "magnitude", "prune_granularity": "block", "threshold": 0.1},
    {"prune_method": "wanda", "prune_granularity": "block", "threshold": 0.1},
    {"prune_method": "wanda", "prune_granularity": "layer", "threshold": 0.1},
    {"prune_method": "wanda", "prune_granularity": "output1", "threshold": 0.1},
    {"prune_method": "wanda", "prune_granularity": "output1", "threshold": 0.1, "sparsity_type": "2:4"},
    {"prune_method": "sparsegpt", "prune_granularity": "layer", "threshold": 0.1, "retain_reconstruction": True},
]


def main() -> None:
    """One line for each setting; the perplexity of every seed's difference shows how much is noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration_data", default="demo")
    parser.add_argument("--eval_data", default="demo")
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--seqlen", type=int)
    given = vars(parser.parse_args())
    table = Table(
        "first pass",
        "granularity",
        "target",
        "agreement",
        "float32",
        "bfloat16",
        "float32, seed 1",
        box=None,
        pad_edge=False,
    )
    for setting in SETTINGS:
        options = {"sparsity_type": "unstructured", **setting, **given, "prune_barber": True, "sparsity_ratio": 0.5}
        exact, exact_ppl = _run(options, "float32", 0)
        coarse, coarse_ppl = _run(options, "bfloat16", 0)
        _, other_ppl = _run(options, "float32", 1)
        same = float((exact == coarse).double().mean())
        target = setting.get("sparsity_type", "50 %")
        numbers = (f"{same:.3%}", f"{exact_ppl:.3f}", f"{coarse_ppl:.3f}", f"{other_ppl:.3f}")
        table.add_row(setting["prune_method"], setting["prune_granularity"], target, *numbers)
    Console(width=120).print(table)


def _run(options: dict[str, Any], word: str, seed: int) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    result = autoprune.prune(
        options["model"], **{k: v for k, v in options.items() if k != "model"}, compute_dtype=word, seed=seed
    )
    assert result.model is not None
    layers = [layer for block in examine(result.model).blocks for layer in block.layers]
    print(
        f"{options['prune_method']} {options['prune_granularity']} {word} seed {seed}:"
        f" {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return torch.cat([(layer.matrix != 0).flatten() for layer in layers]), next(iter(result.perplexity.values()))


if __name__ == "__main__":
    main()
