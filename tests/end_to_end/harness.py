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
