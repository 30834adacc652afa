"""The console script's commands and their flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from autoprune.cli.compare import add_compare
from autoprune.cli.flags import Parser, add_flags, add_recipe
from autoprune.cli.rotate import add_rotate
from autoprune.cli.shrink import add_shrink
from autoprune.cli.speed import add_speed
from autoprune.recipe.commands import EVALUATE, INSPECT, Command

VERIFY = (
    "Checks a pruned checkpoint: zeros, N:M groups, NaN, hashes, tensors that must be the dense model's. Exit status 1"
    " if anything is wrong."
)
BENCH = (
    "Runs every cell of a grid in a process of its own; what is finished is not run again. Exit status 1 if a cell"
    " failed."
)
REPORT = (
    "Sets results of autoprune bench, --save_ppl and --save_zeroshot beside each other: mean and deviation over seeds,"
    " the best of each target bold, significance in words; as a page with pictures too. Of what autoprune compare"
    " saved, one at a time."
)
REPRODUCE = (
    "Runs a published table again and sets each result beside its value: pass, differs, or could not run. Exit status"
    " 1 unless all pass."
)
EXAMPLES = {
    "prune": (
        "autoprune prune MODEL OUT --sparsity 2:4",
        "autoprune prune MODEL OUT --recipe FILE",
    ),
    "eval": ("autoprune eval MODEL", "autoprune eval demo --eval_data demo"),
    "inspect": ("autoprune inspect MODEL",),
    "verify": ("autoprune verify OUT",),
    "bench": ("autoprune bench benchmarks/demo.toml --jobs 2",),
    "report": ("autoprune report out/bench", "autoprune report out/bench --format html --out report.html"),
    "reproduce": ("autoprune reproduce", "autoprune reproduce wanda-llama-7b"),
}


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds all of them, in the order in which help lists them."""
    _add_runs(commands)
    add_compare(commands)
    add_rotate(commands)
    add_shrink(commands)
    add_speed(commands)
    for add in (_add_verify, _add_bench, _add_report, _add_reproduce):
        add(commands)


def _add_runs(commands: argparse._SubParsersAction[Parser]) -> None:
    prune = commands.add_parser(
        "prune", help="prune a model", description="Prune a model.", examples=EXAMPLES["prune"]
    )
    prune.add_argument("model_word", metavar="MODEL", nargs="?", help="the model, instead of --model")
    prune.add_argument("place", metavar="OUT", nargs="?", help="where the result goes, instead of --save_model")
    add_flags(prune, optional_model=True)
    add_recipe(prune)
    for name, about, takes in (
        ("eval", "measure a model as it is", EVALUATE),
        ("inspect", "describe a model: blocks, layers, coverage, cost", INSPECT),
    ):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".", examples=EXAMPLES[name])
        add_flags(command, takes, positional="model")


def _add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="audit a pruned checkpoint, trusting only its files",
        description=VERIFY,
        examples=EXAMPLES["verify"],
    )
    verify.add_argument("directory", metavar="DIR", help="the pruned checkpoint")
    verify.add_argument(
        "--model", metavar="MODEL", help="the dense model; default: the one that the manifest names, if it is at hand"
    )
    verify.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")


def _add_bench(commands: argparse._SubParsersAction[Parser]) -> None:
    bench = commands.add_parser(
        "bench", help="run a grid of recipes and compare", description=BENCH, examples=EXAMPLES["bench"]
    )
    bench.add_argument("grid", metavar="GRID.toml")
    bench.add_argument(
        "--out",
        metavar="DIR",
        default="out/bench",
        help="where cells and reports go; a second run takes up what is there (default %(default)s)",
    )
    bench.add_argument("--jobs", metavar="N", type=int, default=1, help="cells at the same time (default %(default)s)")


def _add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    report = commands.add_parser(
        "report", help="results of earlier runs as a table or a page", description=REPORT, examples=EXAMPLES["report"]
    )
    report.add_argument("results", metavar="RESULTS", nargs="+", type=Path, help="JSON files, or directories of them")
    report.add_argument("--format", choices=("md", "csv", "latex", "html"), default="md", help="default %(default)s")
    report.add_argument("--out", metavar="FILE", type=Path, help="where to write it; default: standard output")
    report.add_argument(
        "--title", metavar="WORDS", help="of the page; default: AutoPrune results, or what was compared"
    )


def _add_reproduce(commands: argparse._SubParsersAction[Parser]) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="run a published table again and compare",
        description=REPRODUCE,
        examples=EXAMPLES["reproduce"],
    )
    reproduce.add_argument(
        "name", metavar="NAME", nargs="?", help="a table of published values; without it the names are listed"
    )
    reproduce.add_argument(
        "--out",
        metavar="DIR",
        default="out/reproduce",
        help="where cells go; a second run takes up what is there (default %(default)s)",
    )
    reproduce.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="cells at the same time (default %(default)s)"
    )
    reproduce.add_argument("--tables", metavar="FILE.toml", help="tables of your own instead of the published ones")
    add_flags(
        reproduce,
        Command("reproduce", ("model", "calibration", "evaluation"), without=("compare",)),
        optional_model=True,
    )
