"""Writes docs/architectures.md from the tiny models that the tests use: run it when these, or what autoprune finds in
them, have changed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "models")]

from configs import DENSE, EXPERTS, REFUSED, WRAPPED, tiny_ids, tiny_model  # noqa: E402
from more import MORE, MORE_EXPERTS  # noqa: E402
from page import BEHAVIOUR, PAGE, STRUCTURE, Row, behaviour, beside, structure, table  # noqa: E402
from runs import open_store  # noqa: E402
from transformers.utils import logging  # noqa: E402

from autoprune.errors import ModelError  # noqa: E402
from autoprune.model.anatomy import check_coverage  # noqa: E402
from autoprune.model.replay import require_replay  # noqa: E402

HEAD = """# Architectures

There is no code for single model families in AutoPrune. It finds the blocks, the layers in them, and how every block
is called, in any decoder
model that transformers can build, and checks what it found: blocks called one by one must give the model's own
numbers, bit for bit. This page lists
what the tests try, each on a tiny random model: found, replayed, pruned by Wanda and LLM-Barber, written, and loaded
again by transformers. What is
not listed may work as well; `autoprune inspect MODEL` says so.

*Made by [scripts/list_architectures.py](../scripts/list_architectures.py) from the configurations in `tests/models/`.*

* **Layers in a block**: linear maps that are pruned. Every expert of a mixture counts as its own layers. Several
  numbers: several kinds of blocks.
* **Coverage**: the share of the blocks' parameters that are weights of these layers. Below 90 % a model is refused. In
  the tiny models norms and
  biases weigh more than in real ones, where coverage is higher.
* **Sub-blocks**: what LLM-Barber rebuilds one after the other, in the order in which they run.
* **Replay**: whether blocks called one by one gave the model's own numbers, in float32 and in bfloat16.
* **Stays dense**: matrices and tables in the blocks that are never pruned: routers, gates of shared experts,
  convolutions, state matrices. Norms and
  biases always stay.

A name behind a slash is a variant: `falcon/alibi` is Falcon with ALiBi positions.
"""
DENSE_TEXT = """
## One MLP for all tokens
"""
EXPERTS_TEXT = """
## Mixtures of experts

Fused three-dimensional parameters are pruned expert by expert, each with the statistics of the tokens that were sent
to it. An expert that saw fewer
than 32 tokens gets the statistic of what all experts saw; it is listed at the end of the run and in `autoprune.json`.
Routers and gates are never pruned.
"""
WRAPPED_TEXT = """
## Models with a language model inside

The language model is pruned; what lies beside it is left as it is, byte for byte. A run says so at its beginning, and
`autoprune inspect` too.
Where transformers' causal language model has no place for these parts (Llama 4), they are copied from checkpoint to
checkpoint.
"""
REFUSED_TEXT = """
## Refused

What can't be pruned is refused before work begins, with the reason:
"""


def works(names: list[str]) -> dict[str, Row]:
    """All columns of architectures that can be pruned."""
    rows: dict[str, Row] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            tiny_model(name).save_pretrained(folder)
            store = open_store(Path(folder))
            rows[name] = structure(store.anatomy) | behaviour(Path(folder)) | {"left alone": beside(store)}
        print(name, rows[name], flush=True)
    return rows


def reasons() -> dict[str, Row]:
    """Why the others are refused, in the program's own words."""
    rows: dict[str, Row] = {}
    for name in REFUSED:
        with tempfile.TemporaryDirectory() as folder:
            tiny_model(name).save_pretrained(folder)
            try:
                store = open_store(Path(folder))
                check_coverage(store.anatomy, allow_partial=False)
                require_replay(store, tiny_ids(2))
            except ModelError as error:
                rows[name] = {"reason": str(error).split("; not reached:")[0].replace("|", "/").replace("*", r"\*")}
    return rows


def main() -> None:
    """Tries everything and writes the page."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    columns = (*STRUCTURE[:-1], *BEHAVIOUR, STRUCTURE[-1])
    text = HEAD + DENSE_TEXT + "\n" + table(columns, works([*DENSE, *MORE]))
    text += EXPERTS_TEXT + "\n" + table(columns, works([*EXPERTS, *MORE_EXPERTS]))
    text += WRAPPED_TEXT + "\n" + table((*columns[:-1], "left alone"), works([*WRAPPED]))
    text += REFUSED_TEXT + "\n" + table(("reason",), reasons())
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
