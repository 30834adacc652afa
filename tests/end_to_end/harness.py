"""Tasks of made-up words in the layout of lm-evaluation-harness."""

from __future__ import annotations

import json
import random
from pathlib import Path

SAMPLES = 24
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
  cache_dir: {cache}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metrics}]
metadata: {{version: {version}}}
"""


def write_task(folder: Path, name: str, metrics: tuple[str, ...], version: float) -> None:
    """A task of made-up words; answers of several lengths, so that acc_norm differs from acc."""
    rng = random.Random(name)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(120)}" for _ in range(count))

    samples = [
        {
            "question": words(rng.randrange(3, 9)),
            "choices": [words(rng.randrange(1, 4)) for _ in range(3)],
            "answer": rng.randrange(3),
        }
        for _ in range(SAMPLES)
    ]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    listed = ", ".join(f"{{metric: {metric}, aggregation: mean, higher_is_better: true}}" for metric in metrics)
    (folder / f"{name}.yaml").write_text(
        TASK.format(name=name, data=data, cache=folder / "cache", metrics=listed, version=version), encoding="utf-8"
    )


def write_generated(folder: Path, name: str) -> None:
    """A task whose answers are generated: a few words, each to be followed by a certain one."""
    write_task(folder, name, ("exact_match",), 1.0)
    path = folder / f"{name}.yaml"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("doc_to_")]
    lines = [line.replace("multiple_choice", "generate_until") for line in lines]
    lines += ['doc_to_text: "{{question}}"', 'doc_to_target: "{{choices[0]}}"']
    lines += ["generation_kwargs: {until: [], do_sample: false, max_gen_toks: 4}"]
    path.write_text("\n".join(lines), encoding="utf-8")
