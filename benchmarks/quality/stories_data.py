"""Lays out what `benchmarks/quality/stories.toml` reads, in out/stories: the model, a calibration text, and windows of
stories that are not in it.

usage: python benchmarks/quality/stories_data.py MODEL STORIES.jsonl

MODEL is the directory of stories260K in Hugging Face layout, and STORIES.jsonl has 1000 stories of TinyStories, a
`text` in every line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

CALIBRATION, HELD_OUT = 850, 150  # stories, from the beginning and from the end
WINDOWS, SEQLEN = 64, 128  # of the held-out stories


def main() -> None:
    """Writes all of it; what is there already is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/stories"))
    given = parser.parse_args()
    stories = [json.loads(line)["text"] for line in given.stories.read_text(encoding="utf-8").splitlines() if line]
    if len(stories) < CALIBRATION + HELD_OUT:
        parser.error(f"{given.stories} has {len(stories)} stories; {CALIBRATION + HELD_OUT} are needed")
    given.out.mkdir(parents=True, exist_ok=True)
    link = given.out / "stories260K"
    link.unlink(missing_ok=True)
    link.symlink_to(given.model.resolve())
    (given.out / "calibration.txt").write_text("\n".join(stories[:CALIBRATION]), encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(given.model)("\n".join(stories[-HELD_OUT:]), verbose=False)["input_ids"]
    windows = torch.tensor(ids[: WINDOWS * SEQLEN]).view(WINDOWS, SEQLEN).clone()
    save_file({"input_ids": windows}, given.out / "held_out.safetensors")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
