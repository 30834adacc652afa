"""Peak resident memory of whole runs, each in a process of its own, beside what `--memory` reckons with: a table in
docs/scale.md.

Models are random, made by `make_checkpoint.py`: the one of 2.2 GB, the same with 3 blocks, and a mixture of experts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import write
from run import machine, publish
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from autoprune.model.anatomy import examine
from autoprune.run.memory import Layout, Load, need_of, shape_of
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.table import make_steps
from autoprune.storage.skeleton import hollow_model

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "memory.json"
SAMPLES, TOKENS, BATCH = 8, 512, 4
RESIDENT = """
import sys, autoprune
autoprune.prune(sys.argv[1], calibration_data=sys.argv[2], nsamples=8, seqlen=512, sparsity_ratio=0.5, memory="8GB")
"""


@dataclass(frozen=True)
class Run:
    """One line: a model, what is done with it, and what it took."""

    model: str
    what: str
    methods: str  # as `autoprune inspect` names them
    flags: tuple[str, ...] = ()
    layout: Layout = field(default_factory=lambda: Layout(BATCH, "cpu"))
    resident: bool = False
    evaluated: int = 0  # windows
    aim: float | None = None  # GB
    peak: float = 0.0  # GB
    reckoned: float = 0.0  # GB


DISK = Layout(BATCH, "disk")
PERPLEXITY = ("--save_ppl", "{out}-ppl", "--eval_data", "{tokens}")
TRAINED = ("--steps", "sparsegpt,reconstruct", "--epochs", "1")
RUNS = (
    Run("22 blocks", "Wanda", "wanda", aim=1.3),
    Run("22 blocks", "Wanda + LLM-Barber", "wanda+barber", ("--prune_barber",), aim=1.8),
    Run("22 blocks", "Wanda, the model held in memory", "wanda", resident=True),
    Run("3 blocks", "magnitude", "magnitude", ("--prune_method", "magnitude")),
    Run("3 blocks", "Wanda", "wanda"),
    Run("3 blocks", "Wanda, hidden states on disk", "wanda", ("--activations", "disk"), DISK),
    Run("3 blocks", "Wanda, then perplexity", "wanda", ("--memory", "1.5GB", *PERPLEXITY), evaluated=SAMPLES),
    Run("3 blocks", "Wanda, `--true_sequential`", "wanda", ("--true_sequential",), Layout(BATCH, "cpu", at_once=True)),
    Run("3 blocks", "SparseGPT", "sparsegpt", ("--prune_method", "sparsegpt")),
    Run("3 blocks", "Wanda + LLM-Barber", "wanda+barber", ("--prune_barber",)),
    Run("3 blocks", "Wanda + LLM-Barber, `block`", "wanda+barber", ("--prune_barber", "--prune_granularity", "block")),
    Run(
        "3 blocks",
        "Wanda + LLM-Barber, `--batch_size 1`",
        "wanda+barber",
        ("--prune_barber", "--batch_size", "1"),
        Layout(1, "cpu"),
    ),
    Run(
        "3 blocks",
        "Wanda + LLM-Barber, hidden states on disk",
        "wanda+barber",
        ("--prune_barber", "--activations", "disk"),
        DISK,
    ),
    Run("3 blocks", "SparseGPT + LLM-Barber", "sparsegpt+barber", ("--prune_method", "sparsegpt", "--prune_barber")),
    Run("3 blocks", "SparseGPT + reconstruct", "sparsegpt+reconstruct", TRAINED, aim=2.4),
    Run("8 experts", "magnitude", "magnitude", ("--prune_method", "magnitude")),
    Run("8 experts", "Wanda", "wanda"),
    Run("8 experts", "SparseGPT", "sparsegpt", ("--prune_method", "sparsegpt")),
    Run("8 experts", "Wanda + LLM-Barber", "wanda+barber", ("--prune_barber",), Layout(1, "cpu")),
)


def make_models(folder: Path, wanted: set[str]) -> None:
    """The wanted models that are not there yet, and one file of tokens."""
    wide: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    }
    narrow = {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
    }
    common = {"vocab_size": 32000, "max_position_embeddings": 2048}
    for name, blocks in (("22 blocks", 22), ("3 blocks", 3), ("8 experts", 2)):
        if name not in wanted or (folder / name).is_dir():
            continue
        begun = folder / f"{name} begun"
        if blocks > 2:
            write(
                LlamaConfig(
                    **wide, **common, num_hidden_layers=blocks, architectures=["LlamaForCausalLM"], dtype="bfloat16"
                ),
                begun,
                5,
            )
        else:
            torch.manual_seed(0)
            config = AutoConfig.for_model("mixtral", **narrow, **common, num_hidden_layers=blocks)
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(begun)
        begun.rename(folder / name)
    save_file(
        {"input_ids": torch.randint(32000, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))},
        folder / "tokens.safetensors",
    )


def measured(run: Run, folder: Path) -> float:
    """Peak resident memory of one run, GB."""
    model, tokens, out = folder / run.model, folder / "tokens.safetensors", folder / "out"
    if run.resident:
        command = ["-c", RESIDENT, model, tokens]
    else:
        flags = [flag.format(out=out, tokens=tokens) for flag in run.flags]
        command = [
            ROOT / "main.py",
            "--model",
            model,
            "--calibration_data",
            tokens,
            "--nsamples",
            SAMPLES,
            "--seqlen",
            TOKENS,
        ]
        command += ["--sparsity_ratio", 0.5, "--save_model", out, "--delete", "--quiet", *flags]
    process = subprocess.Popen([sys.executable, *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{run.model}, {run.what}: the run failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 2**10) / 1e9


def reckoned(run: Run, folder: Path) -> float:
    """What `--memory` reckons with, GB."""
    model = hollow_model(folder / run.model, torch.bfloat16)
    anatomy = examine(model)
    methods: Sequence[Step] = make_steps(run.methods.split("+"), {})
    if "block" in run.flags:
        methods = (*methods[:-1], Barber("block"))
    load = Load(SAMPLES, TOKENS, run.evaluated, TOKENS)
    need = need_of(shape_of(model, anatomy, torch.bfloat16, moved=False), methods, run.layout, load)
    whole = sum(path.stat().st_size for path in (folder / run.model).glob("*.safetensors")) if run.resident else 0
    return (need.total + whole) / 1e9


def lines(runs: Sequence[Run]) -> Iterator[str]:
    """The table as Markdown."""
    yield "| model | run | peak resident memory | aim | `--memory` reckons with |"
    yield "|---|---|---:|---:|---:|"
    for run in runs:
        aim = "" if run.aim is None else f"{run.aim:g} GB" + ("" if run.peak <= run.aim else ", missed")
        yield f"| {run.model} | {run.what} | {run.peak:.2f} GB | {aim} | {run.reckoned:.2f} GB |"


def completed(runs: Sequence[Run], folder: Path) -> Iterator[Run]:
    """The runs with their figures."""
    for run in runs:
        done = replace(run, peak=measured(run, folder), reckoned=reckoned(run, folder))
        print(f"{run.model}, {run.what}: {done.peak:.2f} GB, reckoned {done.reckoned:.2f}", flush=True)
        yield done


def _figures(line: dict[str, Any]) -> dict[str, float]:
    return {name: line[name] for name in ("peak", "reckoned")}


def main() -> None:
    """Measures, prints, and puts the table into docs/scale.md; where only some runs were asked for, with the others as
    they were.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scratch", type=Path, help="where models of up to 2.2 GB are made and kept (default: a temporary folder)"
    )
    parser.add_argument("--only", default="", help="runs whose model or name contains this")
    given = parser.parse_args()
    wanted = [run for run in RUNS if given.only in f"{run.model}, {run.what}"]
    with tempfile.TemporaryDirectory() as folder:
        scratch = given.scratch or Path(folder)
        make_models(scratch, {run.model for run in wanted})
        done = list(completed(wanted, scratch))
    earlier = {(line["model"], line["what"]): line for line in json.loads(RECORD.read_text(encoding="utf-8"))["runs"]}
    lately = earlier | {(run.model, run.what): asdict(run) for run in done}
    every = [replace(run, **_figures(lately[run.model, run.what])) for run in RUNS if (run.model, run.what) in lately]
    record = {"date": str(date.today()), "machine": machine(), "runs": [asdict(run) for run in every]}
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    publish("\n".join(lines(every)), "memory", "scale.md")


if __name__ == "__main__":
    main()
