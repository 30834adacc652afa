"""AutoPrune from a script of yours: texts from Python, ratios by layer, and three recipes beside each other.

``python examples/python.py`` runs it on the small model that comes with AutoPrune, in about a minute on a CPU.
``mypy --strict --ignore-missing-imports examples/python.py`` finds nothing to say.
"""

from __future__ import annotations

from importlib.resources import files

import pandas as pd
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune
from autoprune.events import BlockResult, Event

# A line of the demo's texts is a chapter of a book. Yours may come from anywhere.
DEMO = files("autoprune") / "demo"
CHAPTERS = (DEMO / "calibration.txt").read_text(encoding="utf-8").splitlines()
HELDOUT = (DEMO / "heldout.txt").read_text(encoding="utf-8").splitlines()

RECIPES: dict[str, autoprune.PruneOptions] = {
    "Wanda": {"steps": "wanda"},
    "Wanda, then refit": {"steps": "wanda,refit"},
    "SparseGPT": {"steps": "sparsegpt"},
}


def compare_recipes(nsamples: int, seqlen: int) -> pd.DataFrame:
    """Three recipes on the same texts: a list of strings to calibrate on, a Dataset to measure on."""
    heldout = Dataset.from_dict({"text": HELDOUT[:6], "chapter": list(range(6))})
    dense = autoprune.evaluate("demo", eval_data={"heldout": heldout}, seqlen=seqlen)
    rows = [{"recipe": "dense", "zeros": 0.0, "perplexity": dense.perplexity["heldout"]}]
    texts: autoprune.PruneOptions = {"calibration_data": CHAPTERS, "eval_data": {"heldout": heldout}}
    common: autoprune.PruneOptions = {**texts, "sparsity_ratio": 0.5, "nsamples": nsamples, "seqlen": seqlen}
    for name, recipe in RECIPES.items():
        options: autoprune.PruneOptions = {**common, **recipe}
        result = autoprune.prune("demo", **options)
        rows.append({"recipe": name, "zeros": result.row.sparsity, "perplexity": result.perplexity["heldout"]})
    return pd.DataFrame(rows).set_index("recipe")


def ratios_by_layer(nsamples: int, seqlen: int) -> pd.DataFrame:
    """The feed-forward layers lose more than the attention; a DataLoader of token ids calibrates."""
    tokenizer = AutoTokenizer.from_pretrained(str(DEMO))
    ids = tokenizer("\n".join(CHAPTERS), return_tensors="pt").input_ids[0]
    rows = ids[: nsamples * seqlen].view(nsamples, seqlen)
    windows = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    model = AutoModelForCausalLM.from_pretrained(str(DEMO))  # pruned in place
    result = autoprune.prune(
        model,
        sparsity_ratio=0.4,
        ratios={"*.mlp.*": 0.6},
        ignore=["*.layers.0.*"],
        steps="wanda",
        calibration_data=DataLoader(windows, batch_size=2),  # rows say themselves how many and how long they are
        emit=say,
    )
    for text in result.warnings:
        print("note:", text)
    prompt = tokenizer("And it came to pass", return_tensors="pt").input_ids
    said = result.model.generate(prompt, max_new_tokens=8, do_sample=False)
    print(tokenizer.decode(said[0]))
    return result.to_pandas().pivot(index="layer", columns="block", values="sparsity")


def say(event: Event) -> None:
    """What ``emit`` is called with: here a line for every finished block, instead of the usual progress."""
    if isinstance(event, BlockResult):
        print(f"{event.name}: {len(event.layers)} layers pruned")


def main(nsamples: int = 32, seqlen: int = 256) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both, printed."""
    tables = compare_recipes(nsamples, seqlen), ratios_by_layer(nsamples, seqlen)
    for table in tables:
        print(table.round(3), end="\n\n")
    return tables


if __name__ == "__main__":
    main()
