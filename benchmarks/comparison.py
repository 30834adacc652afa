"""What `autoprune compare` costs: its time over that of two perplexity runs, in one process and in turn; and the peak
memory of comparing two models of 2.2 GB, in a process of its own. Writes the table in docs/comparison.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import write
from run import machine, publish
from safetensors.torch import save_file
from transformers import LlamaConfig

from autoprune.data.windows import evaluation_windows
from autoprune.evaluation.compare import compare_predictions
from autoprune.evaluation.perplexity import perplexity
from autoprune.events import silent
from autoprune.model.stream import Place
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.run.open import open_model

ROOT = Path(__file__).resolve().parent.parent
RATIO_AIM, MEMORY_AIM = 1.15, 1.6  # of two perplexity runs; GB
SAMPLES, TOKENS = 8, 512  # of the large model
VOCABULARY = 32000


def clocked(work: Callable[[], object]) -> float:
    """Processor seconds, which a shared machine disturbs less than wall time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(dense: str, pruned: str, *, seqlen: int, windows: int, rounds: int, resident: bool) -> list[float]:
    """Of every round: the comparison's time over that of both perplexities."""
    first, second = (
        open_model(recipe_from_flat({"model": word, "sparsity_ratio": 0}), resident=resident)
        for word in (dense, pruned)
    )
    cut = evaluation_windows(
        "demo", first.load_tokenizer, seqlen=seqlen, vocab_size=first.config.vocab_size, max_windows=windows
    )
    how = {"batch": max(1, 2048 // seqlen), "place": Place(), "emit": silent}
    found = []
    for number in range(rounds + 1):  # the first one warms up
        alone = [clocked(lambda s=s: perplexity(s.store, cut, "demo", **how)) for s in (first, second)]  # type: ignore[misc]
        beside = clocked(lambda: compare_predictions(first.store, {"pruned": second.store}, cut, "demo", **how))
        if number:
            found.append(beside / sum(alone))
    return sorted(found)


def peak(folder: Path) -> float:
    """Peak resident memory of a whole comparison, GB."""
    model = folder / "22 blocks"
    if not model.is_dir():
        shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
        config = LlamaConfig(
            **shape,
            vocab_size=VOCABULARY,
            max_position_embeddings=2048,
            num_hidden_layers=22,
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
        )
        write(config, folder / "begun", 5)
        (folder / "begun").rename(model)
    ids = torch.randint(VOCABULARY, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, folder / "compared.safetensors")
    command = [
        sys.executable,
        "-m",
        "autoprune",
        "compare",
        model,
        model,
        "--eval_data",
        folder / "compared.safetensors",
    ]
    command += ["--seqlen", TOKENS, "--memory", f"{MEMORY_AIM}GB"]
    process = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit("the comparison failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 2**10) / 1e9


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| what | measured | aim |", "|---|---:|---:|"]
    for held, found in record["ratios"].items():
        name = f"time over that of two perplexity runs, demo model, {held}"
        lines.append(f"| {name} | {found[len(found) // 2]:.2f} ({found[0]:.2f} to {found[-1]:.2f}) | ≤ {RATIO_AIM} |")
    name = f"peak memory, two models of 2.2 GB, vocabulary {VOCABULARY:,}, block by block"
    return "\n".join([*lines, f"| {name} | {record['peak']:.2f} GB | ≤ {MEMORY_AIM} GB |"])


def main() -> None:
    """Measures, prints, and puts the table into docs/comparison.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="where a model of 2.2 GB is made and kept (default: temporary)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    for name, resident in (("in memory", True), ("block by block", False)):
        found[name] = ratios("demo", "demo", seqlen=256, windows=64, rounds=given.rounds, resident=resident)
        print(name, found[name], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        most = peak(given.scratch or Path(folder))
    record = {"date": str(date.today()), "machine": machine(), "ratios": found, "peak": most}
    print(table(record), flush=True)
    kept = ROOT / "benchmarks" / "results" / "comparison.json"
    kept.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    publish(table(record), "comparison", "comparison.md")


if __name__ == "__main__":
    main()
