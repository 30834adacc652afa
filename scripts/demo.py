"""`make demo`: prunes the shipped model in every way and shows what each costs, as a table and as a page.

Every line of the table is one run of `main.py`, whose command is printed; all share this process, so that torch
is imported once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.cli.show import terminal
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.report.needs import check_pages
from autoprune.report.page import render_html
from autoprune.report.progress import watching
from autoprune.report.publish import published
from autoprune.report.tables import comparison
from autoprune.results.codec import dump_json
from autoprune.results.numbers import change_text
from autoprune.results.table import print_table
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow
from autoprune.run.api import run

COMMON = ["--model", "demo", "--calibration_data", "demo", "--eval_data", "demo"]
METHODS = ("magnitude", "wanda", "sparsegpt")
TARGETS = (["--sparsity_ratio", "0.5"], ["--sparsity_type", "2:4"])
# LLM-Barber's settings by first pass at 50 %, and its only granularity at 2:4. Its authors chose the same after
# magnitude and SparseGPT;
# after Wanda they exchange 0.01 of each row's inverted pairs, of which these short rows have fewer than a hundred.
BARBER = {"magnitude": ("block", "0.1"), "wanda": ("block", "0.1"), "sparsegpt": ("layer", "0.1")}
BARBER_N_M = ("output1", "0.1")


def commands(out: Path) -> list[list[str]]:
    """The flags of every run."""
    runs = [[*COMMON, "--sparsity_ratio", "0", "--save_ppl", str(out / "dense")]]
    for target in TARGETS:
        for method in METHODS:
            name = out / f"{method}-{target[1].replace(':', '_')}"
            runs.append([*COMMON, "--prune_method", method, *target, "--save_ppl", str(name)])
            granularity, threshold = BARBER_N_M if "2:4" in target else BARBER[method]
            barber = ["--prune_barber", "--prune_granularity", granularity, "--threshold", threshold]
            runs.append([*COMMON, "--prune_method", method, *target, *barber, "--save_ppl", f"{name}-barber"])
    runs[3] += ["--save_model", str(out / "wanda-0.5" / "model"), "--overwrite"]
    return runs


def recipe_of(flags: list[str]) -> Recipe:
    """The recipe that `main.py` would make of these flags."""
    parser = Parser(prog="main.py", allow_abbrev=False)
    add_flags(parser)
    return recipe_from_flat(given(parser.parse_args(flags)))


def said(rows: list[EvaluationRow], seconds: float) -> str:
    """The last row in few words."""
    dense, last = rows[0].perplexity[0].perplexity, rows[-1].perplexity[0].perplexity
    change = f" ({change_text(last / dense)} vs dense)" if len(rows) > 1 else ""
    return f"{rows[-1].method}, {rows[-1].target}: perplexity {last:.2f}{change}, {seconds:.0f} s"


def main() -> int:
    """Runs everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where results go")
    out: Path = parser.parse_args().out
    check_pages("the demo")
    console = terminal()
    rows: list[EvaluationRow] = []
    start, todo = time.monotonic(), commands(out)
    for i, flags in enumerate(todo, start=1):
        console.print(
            f"{i}/{len(todo)} python main.py {shlex.join(flags)}", style="dim", soft_wrap=True, highlight=False
        )
        begin = time.monotonic()
        with watching(quiet=not sys.stderr.isatty()) as emit:
            rows.append(run(recipe_of(flags), emit).row)
        console.print(f"    {said(rows, time.monotonic() - begin)}", soft_wrap=True, highlight=False)
    page = out / "report.html"
    words = {"title": "AutoPrune on its demo model", "subtitle": "A small LLaMA trained on the King James Bible"}
    page.write_text(
        render_html(rows, **words, command="make demo", files=("results.json", "results.csv")), encoding="utf-8"
    )
    (out / "results.csv").write_text(published(rows, "csv"), encoding="utf-8")
    (out / "results.json").write_text(dump_json(rows), encoding="utf-8")
    console.print()
    print_table(comparison(Results(rows)), console)
    console.print(f"report:     {page}", highlight=False, soft_wrap=True)
    console.print(
        f"checkpoint: {out / 'wanda-0.5' / 'model'} (Wanda, 50 %; loads like any other)",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"{time.monotonic() - start:.0f} s", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
