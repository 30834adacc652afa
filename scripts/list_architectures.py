"""Writes docs/architectures.md: every family of decoders of the installed transformers, tried on a tiny random model.

Run it when that version, the tiny configurations in tests/models, or what autoprune finds in them have changed. It
takes some four minutes on one quiet core. An argument names another file to write.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "models")]

from configs import DENSE, EXPERTS, REFUSED, WRAPPED  # noqa: E402
from families import SHELLS, TYPES, Verdict, judge  # noqa: E402
from more import MORE, MORE_EXPERTS  # noqa: E402
from page import BESIDE, COLUMNS, PAGE, count, table  # noqa: E402
from transformers.utils import logging  # noqa: E402

HEAD = """# Architectures

There is no code for single model families in AutoPrune. It finds the blocks, the layers in them, and how every block
is called, in any decoder
model that transformers can build, and checks what it found: blocks called one by one must give the model's own
numbers, bit for bit. This page lists
what became of every family that transformers has: of each, a tiny random model was found, replayed, pruned by Wanda
and LLM-Barber, and written. `autoprune inspect MODEL` says the same of a model of yours.

{count}

*Made by [scripts/list_architectures.py](../scripts/list_architectures.py) from the configurations in `tests/models/`.*

* **Layers in a block**: linear maps that are pruned. Every expert of a mixture counts as its own layers. Several
  numbers: several kinds of blocks.
* **Coverage**: the share of the blocks' parameters that are weights of these layers. Below 90 % a model is refused. In
  the tiny models norms and
  biases weigh more than in real ones, where coverage is higher.
* **Sub-blocks**: what LLM-Barber rebuilds one after the other, in the order in which they run.
* **Replay**: whether blocks called one by one gave the model's own numbers.
* **Stays dense**: matrices and tables in the blocks that are never pruned: routers, gates of shared experts,
  indexers of sparse attention, mixers of residual streams, grouped maps, convolutions, state matrices. Norms and
  biases always stay.

A name behind a slash is a variant: `falcon/alibi` is Falcon with ALiBi positions. Encoders that transformers lists as
decoders too (BERT and its kin) are tried as it builds them.
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

What can't be pruned is refused before work begins, with the reason. Where it is that transformers did not build the
model, from a small configuration or without a package, nothing is said of a real one.
"""


def verdicts() -> dict[str, Verdict]:
    """Of every family and variant, in the order of the tests' lists, then of transformers'."""
    known = [*DENSE, *MORE, *EXPERTS, *MORE_EXPERTS, *WRAPPED, *REFUSED]
    found = {}
    for name in dict.fromkeys((*known, *TYPES, *SHELLS)):
        found[name] = judge(name)
        print(name, found[name].word, found[name].row.get("reason", ""), flush=True)
    return found


def rows(found: dict[str, Verdict], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The columns of those of these names that work."""
    return {name: found[name].row for name in names if found[name].word == "works"}


def main() -> int:
    """Tries everything and writes the page; returns how many families failed."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    found = verdicts()
    wrapped = [name for name in found if found[name].row.get("left alone")]
    experts = [name for name in found if found[name].row.get("experts") and name not in wrapped]
    plain = [name for name in found if name not in (*wrapped, *experts)]
    text = HEAD.format(count=count({name: verdict.word for name, verdict in found.items()}))
    text += DENSE_TEXT + "\n" + table(COLUMNS, rows(found, plain))
    text += EXPERTS_TEXT + "\n" + table(COLUMNS, rows(found, experts))
    text += WRAPPED_TEXT + "\n" + table(BESIDE, rows(found, wrapped))
    text += REFUSED_TEXT + "\n" + table(("reason",), {n: v.row for n, v in found.items() if v.word == "refused"})
    if failed := {name: verdict.row for name, verdict in found.items() if verdict.word == "fails"}:
        text += "\n## Fails\n\n" + table(("reason",), failed)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(text, encoding="utf-8")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
