"""Lays out what `benchmarks/smollm2.toml` reads, in out/smollm2: the model, a calibration text, the windows of
WikiText-2, and zero-shot tasks on local items.

usage: python benchmarks/smollm2_data.py MODEL C4.jsonl WIKITEXT.txt TASKS

MODEL is the directory of SmolLM2-135M-Instruct, C4.jsonl has a `text` in every line, WIKITEXT.txt is the raw test set,
and TASKS holds boolq, rte, arc_easy and winogrande, each with validation.jsonl (and test.jsonl, which is taken first)
in the fields that lm-evaluation-harness reads. Questions and prompts are the harness's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml
from lm_eval.tasks import TaskManager
from safetensors.torch import save_file
from transformers import AutoTokenizer

WINDOWS, SEQLEN = 20, 512  # of WikiText-2, from its beginning
TASKS = ("boolq", "rte", "arc_easy", "winogrande")


def local_task(name: str, items: Path, manager: TaskManager) -> dict[str, object]:
    """The harness's own task on the items in a folder."""
    splits = {split: str(path) for split in ("validation", "test") if (path := items / f"{split}.jsonl").is_file()}
    return {
        "include": str(manager.task_index[name].yaml_path),
        "task": name,
        "tag": [],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": splits},
        "training_split": None,
        **{f"{split}_split": split if split in splits else None for split in ("validation", "test")},
    }


def main() -> None:
    """Writes all of it; what is there already is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "c4", "wikitext", "tasks"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/smollm2"))
    given = parser.parse_args()
    (given.out / "tasks").mkdir(parents=True, exist_ok=True)
    link = given.out / "SmolLM2-135M-Instruct"
    link.unlink(missing_ok=True)
    link.symlink_to(given.model.resolve())
    documents = [json.loads(line)["text"] for line in given.c4.read_text(encoding="utf-8").splitlines() if line]
    (given.out / "c4.txt").write_text("\n\n".join(documents), encoding="utf-8")
    text = given.wikitext.read_text(encoding="utf-8")
    ids = torch.tensor(AutoTokenizer.from_pretrained(given.model)(text, verbose=False)["input_ids"])
    save_file(
        {"input_ids": ids[: WINDOWS * SEQLEN].view(WINDOWS, SEQLEN).clone()}, given.out / "wikitext2.safetensors"
    )
    manager = TaskManager()
    for name in TASKS:
        config = local_task(name, (given.tasks / name).resolve(), manager)
        (given.out / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
