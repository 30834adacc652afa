"""How time and peak memory grow with depth, width and samples: a plot and a table, from whole runs in processes of
their own.

Each run streams a random LLaMA-shaped checkpoint from disk to disk (`--save_model`), by Wanda and then LLM-Barber.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from make_checkpoint import write
from matplotlib import pyplot
from run import machine, publish
from safetensors.torch import save_file
from transformers import LlamaConfig

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, TOKENS = 4096, 256
RUN = """
import json, sys, autoprune
result = autoprune.prune(sys.argv[1], **json.loads(sys.argv[2]))
open(sys.argv[3], "w").write(str(result.summary.seconds["prune"]))
"""
UNITS = {"seconds": "seconds a block", "peak": "peak memory, MiB"}


@dataclass(frozen=True)
class Point:
    """One run: the model, the samples, and what they cost."""

    blocks: int = 8
    width: int = 512
    samples: int = 16
    seconds: float = 0.0  # of pruning, per block
    peak: float = 0.0  # resident, MiB


BASE = Point()
AXES = {"blocks": (4, 8, 16, 32), "width": (256, 512, 768, 1024), "samples": (8, 16, 32, 64)}


def measured(point: Point, folder: Path) -> Point:
    """Makes the model, prunes it in a process of its own, and takes seconds and peak memory."""
    model, tokens = folder / "model", folder / "tokens.safetensors"
    config = LlamaConfig(
        hidden_size=point.width,
        intermediate_size=point.width * 11 // 4,
        num_hidden_layers=point.blocks,
        num_attention_heads=point.width // 64,
        num_key_value_heads=point.width // 64,
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    write(config, model, 1)
    save_file(
        {"input_ids": torch.randint(VOCABULARY, (point.samples, TOKENS), generator=torch.Generator().manual_seed(1))},
        tokens,
    )
    options = {
        "calibration_data": str(tokens),
        "nsamples": point.samples,
        "seqlen": TOKENS,
        "sparsity_ratio": 0.5,
        "prune_barber": True,
    }
    options |= {"prune_granularity": "layer", "threshold": 0.1, "batch_size": 8, "save_model": str(folder / "out")}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(model), json.dumps(options), str(folder / "seconds")])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run of {point} failed")
    seconds = float((folder / "seconds").read_text(encoding="utf-8")) / point.blocks
    return replace(point, seconds=seconds, peak=usage.ru_maxrss / (1 if sys.platform == "darwin" else 2**10))


def draw(points: dict[str, list[Point]], path: Path) -> None:
    """Two rows (seconds a block, peak memory), one column for each of depth, width and samples."""
    figure, axes = pyplot.subplots(2, 3, figsize=(9.6, 5.2), layout="constrained", sharex="col")
    for column, (axis, line) in enumerate(points.items()):
        x = [getattr(point, axis) for point in line]
        for row, (value, unit) in enumerate(UNITS.items()):
            plot = axes[row][column]
            plot.plot(x, [getattr(point, value) for point in line], marker="o", color="#0072B2", linewidth=2)
            plot.set_ylim(0, 1.15 * max(getattr(point, value) for point in line))
            plot.set_xticks(x)
            plot.grid(alpha=0.3)
            plot.spines[["top", "right"]].set_visible(False)
            if column == 0:
                plot.set_ylabel(unit)
        axes[1][column].set_xlabel(axis)
    figure.savefig(path, dpi=150)


def table(points: dict[str, list[Point]]) -> str:
    """The same as Markdown."""
    lines = ["| varied | blocks | width | samples | seconds a block | peak memory |", "|---|---:|---:|---:|---:|---:|"]
    for axis, line in points.items():
        lines += [
            f"| {axis} | {p.blocks} | {p.width} | {p.samples} | {p.seconds:.2f} | {p.peak:,.0f} MiB |" for p in line
        ]
    return "\n".join(lines)


def main() -> None:
    """Measures, draws, and puts the table into docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scratch", type=Path, help="where models of up to 1 GB are made (default: a temporary folder)"
    )
    given = parser.parse_args()
    points: dict[str, list[Point]] = {}
    for axis, values in AXES.items():
        for value in values:
            with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
                points.setdefault(axis, []).append(measured(replace(BASE, **{axis: value}), Path(folder)))
            print(points[axis][-1], flush=True)
    draw(points, ROOT / "img" / "growth.png")
    found = {axis: [asdict(point) for point in line] for axis, line in points.items()}
    record = {"date": str(date.today()), "machine": machine(), "points": found}
    (ROOT / "benchmarks" / "results" / "growth.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    publish(table(points), "growth", "scale.md")


if __name__ == "__main__":
    main()
