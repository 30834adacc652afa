"""``autoprune prune | eval | inspect`` and the classic ``main.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import autoprune
from autoprune.cli.compare import add_compare, run_compare
from autoprune.cli.flags import Parser, add_flags, given
from autoprune.cli.rotate import add_rotate, run_rotate
from autoprune.errors import AutoPruneError, OutputError, RecipeError
from autoprune.machine.launch import launched, require_alone
from autoprune.recipe.recipe import recipe_from_flat

INTRODUCTION = (
    "Prunes Hugging Face causal language models in one shot. For example:"
    " `autoprune prune MODEL OUT --sparsity 2:4`, then `autoprune compare MODEL OUT`."
)
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
    " the best of each target bold, significance in words; as a page with pictures too."
)
REPRODUCE = (
    "Runs a published table again and sets each result beside its value: pass, differs, or could not run. Exit status"
    " 1 unless all pass."
)
FLAGS: dict[
    str, tuple[tuple[str, ...] | None, tuple[str, ...]]
] = {  # groups of options, and what of them means nothing there
    "prune": (None, ()),
    "eval": (
        ("model", "calibration", "evaluation", "zeroshot", "output", "run"),
        ("calibration_data", "nsamples", "save_model", "delete"),
    ),
    "inspect": (
        ("model", "calibration", "run"),
        ("calibration_data", "seed", "datasets_cache_dir", "protocol", "memory", "activations", "quiet"),
    ),
}
ELSEWHERE = {"compare": run_compare, "rotate": run_rotate}  # commands with a file of their own


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status: 0, or 2 after an error that the user can mend."""
    return _guarded(_console, list(sys.argv[1:] if arguments is None else arguments))


def classic(arguments: Sequence[str] | None = None) -> int:
    """``main.py``: the flags of `autoprune prune`, with the model as ``--model``."""
    return _guarded(_classic, list(sys.argv[1:] if arguments is None else arguments))


def _classic(arguments: list[str]) -> int:
    parser = Parser(prog="main.py", description=INTRODUCTION, allow_abbrev=False)
    add_flags(parser)
    return _prune(given(parser.parse_args(arguments)))


def _console(arguments: list[str]) -> int:
    parser = Parser(prog="autoprune", description=INTRODUCTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"autoprune {autoprune.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, about in (
        ("prune", "prune a model"),
        ("eval", "measure a model as it is"),
        ("inspect", "describe a model: blocks, layers, coverage, cost"),
    ):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".", allow_abbrev=False)
        groups, without = FLAGS[name]
        if name == "prune":
            command.add_argument("model_word", metavar="MODEL", nargs="?", help="the model, instead of --model")
            command.add_argument(
                "place", metavar="OUT", nargs="?", help="where the result goes, instead of --save_model"
            )
        add_flags(command, groups, without, positional=None if name == "prune" else "model", optional_model=True)
    add_compare(commands)
    add_rotate(commands)
    verify = commands.add_parser(
        "verify", help="audit a pruned checkpoint, trusting only its files", description=VERIFY, allow_abbrev=False
    )
    verify.add_argument("directory", metavar="DIR", help="the pruned checkpoint")
    verify.add_argument(
        "--model", metavar="MODEL", help="the dense model; default: the one that the manifest names, if it is at hand"
    )
    bench = commands.add_parser(
        "bench", help="run a grid of recipes and compare", description=BENCH, allow_abbrev=False
    )
    bench.add_argument("grid", metavar="GRID.toml")
    bench.add_argument(
        "--out",
        metavar="DIR",
        default="out/bench",
        help="where cells and reports go; a second run takes up what is there (default %(default)s)",
    )
    bench.add_argument("--jobs", metavar="N", type=int, default=1, help="cells at the same time (default %(default)s)")
    report = commands.add_parser(
        "report", help="results of earlier runs as a table or a page", description=REPORT, allow_abbrev=False
    )
    report.add_argument("results", metavar="RESULTS", nargs="+", type=Path, help="JSON files, or directories of them")
    report.add_argument("--format", choices=("md", "csv", "latex", "html"), default="md", help="default %(default)s")
    report.add_argument("--out", metavar="FILE", type=Path, help="where to write it; default: standard output")
    report.add_argument("--title", metavar="WORDS", default="AutoPrune results", help="of the page")
    reproduce = commands.add_parser(
        "reproduce", help="run a published table again and compare", description=REPRODUCE, allow_abbrev=False
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
    add_flags(reproduce, ("model", "calibration", "evaluation"), optional_model=True)
    chosen = parser.parse_args(arguments)
    if chosen.command not in ("prune", "eval"):
        require_alone(f"autoprune {chosen.command}")
    if chosen.command == "reproduce":
        return _reproduce(chosen, given(chosen))
    if chosen.command in ELSEWHERE:
        return ELSEWHERE[chosen.command](chosen)
    if chosen.command == "verify":
        return _verify(chosen.directory, chosen.model)
    if chosen.command == "report":
        return _report(chosen)
    if chosen.command == "bench":
        return _bench(chosen.grid, chosen.out, chosen.jobs)
    values = given(chosen)
    if chosen.command == "inspect":
        return _inspect(values)
    return _prune(values | {"sparsity_ratio": 0} if chosen.command == "eval" else _placed(values, chosen))


def _placed(values: dict[str, object], chosen: argparse.Namespace) -> dict[str, object]:
    """The options with model and place as they were given without flags."""
    for name, word in (("model", chosen.model_word), ("save_model", chosen.place)):
        if word is not None and name in values:
            raise RecipeError(
                f"{word!r} and --{name} {values[name]} say the same thing twice; leave out one of the two"
            )
        values |= {name: word} if word is not None else {}
    if "model" not in values:
        raise RecipeError("no model is named; write `autoprune prune MODEL OUT --sparsity 2:4`, or give --model")
    return values


def _prune(values: dict[str, object]) -> int:
    recipe = recipe_from_flat(values)
    output = recipe.output
    if recipe.run.quiet and not (output.save_model or output.save_ppl or output.save_zeroshot):
        raise RecipeError(
            "--quiet shows nothing and nothing is saved; add --save_model, --save_ppl or --save_zeroshot, or leave out"
            " --quiet"
        )
    from autoprune.cli.progress import watching
    from autoprune.cli.show import show_result

    here = launched()
    quiet = recipe.run.quiet or (here is not None and not here.first)
    with watching(quiet=quiet) as emit:
        from autoprune.run.api import run

        result = run(recipe, emit)
    if not quiet:
        show_result(result)
    return 0


def _inspect(values: dict[str, object]) -> int:
    from autoprune.cli.show import show_inspection

    recipe = recipe_from_flat({"sparsity_ratio": 0.5, **values})
    from autoprune.run.inspect import inspect_recipe

    show_inspection(inspect_recipe(recipe))
    return 0


def _verify(directory: str, model: str | None) -> int:
    from autoprune.cli.progress import watching
    from autoprune.cli.show import show_audit

    with watching(quiet=False) as emit:
        from autoprune.evaluation.audit import audit, find_dense

        report = audit(Path(directory), find_dense(Path(directory), model, emit), emit)
    show_audit(report)
    return 0 if report.sound else 1


def _bench(grid: str, out: str, jobs: int) -> int:
    from autoprune.bench.bench import benchmark
    from autoprune.cli.progress import watching

    with watching(quiet=False) as emit:
        summary = benchmark(grid, out, jobs=jobs, emit=emit)
    from autoprune.cli.show import show_bench

    show_bench(summary)
    return 1 if summary.failed else 0


def _report(chosen: argparse.Namespace) -> int:
    from autoprune.report.publish import published
    from autoprune.results.codec import read_rows

    text = published(read_rows(chosen.results), chosen.format, title=chosen.title)
    if chosen.out is None:
        sys.stdout.write(text)
        return 0
    try:
        chosen.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {chosen.out}: can't write there ({error}); choose another file") from error
    return 0


def _reproduce(chosen: argparse.Namespace, overrides: dict[str, object]) -> int:
    from autoprune.bench.reproduce import PUBLISHED, read_tables, reproduce
    from autoprune.cli.progress import watching
    from autoprune.cli.show import show_reproduction

    tables = Path(chosen.tables) if chosen.tables else PUBLISHED
    if chosen.name is None:
        for name, table in read_tables(tables).items():
            print(f"{name}: {table['source']}")
        return 0
    with watching(quiet=False) as emit:
        result = reproduce(
            chosen.name,
            Path(chosen.out) / chosen.name,
            jobs=chosen.jobs,
            tables=tables,
            overrides=overrides,
            emit=emit,
        )
    show_reproduction(result)
    return 0 if result.passed else 1


def _guarded(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return command(arguments)
    except AutoPruneError as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _say(error: AutoPruneError) -> None:
    """Prints the message; of several processes the first one does, unless it does not know of the error."""
    try:
        here = launched()
    except AutoPruneError:  # which is the error to be told
        here = None
    if here is None or here.first or not error.everywhere:
        print(f"error: {error}" if here is None else f"error: rank {here.rank}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
