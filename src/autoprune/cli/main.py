"""``autoprune prune | eval | inspect`` and the classic ``main.py``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import autoprune
from autoprune.cli.commands import add_commands
from autoprune.cli.compare import run_compare
from autoprune.cli.flags import Parser, add_flags, add_recipe, beneath, given
from autoprune.cli.rotate import run_rotate
from autoprune.cli.shrink import run_shrink
from autoprune.cli.speed import run_speed
from autoprune.cli.tasks import asks_for_tasks, list_tasks
from autoprune.errors import AutoPruneError, OutputError, RecipeError
from autoprune.machine.launch import launched, require_alone
from autoprune.recipe.recipe import recipe_from_flat

INTRODUCTION = "Prunes Hugging Face causal language models in one shot."
EXAMPLES = (
    "autoprune prune MODEL OUT --sparsity 2:4",
    "autoprune compare MODEL OUT",
    "autoprune eval demo --eval_data demo",
)
CLASSIC = (
    "python main.py --model MODEL --prune_method wanda \\",
    "  --sparsity_ratio 0.5 --save_model OUT --save_ppl OUT",
)
NUMBERS = ("torch", "transformers", "safetensors")  # packages that can change a number
ELSEWHERE = {  # commands with a file of their own
    "compare": run_compare,
    "rotate": run_rotate,
    "shrink": run_shrink,
    "speed": run_speed,
}


def _versions() -> str:
    """The program's version and those of what its numbers depend on."""
    return ", ".join([f"autoprune {autoprune.__version__}", *(f"{name} {version(name)}" for name in NUMBERS)])


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status: 0, or 2 after an error that the user can mend."""
    return _guarded(lambda: _console(list(sys.argv[1:] if arguments is None else arguments)))


def classic(arguments: Sequence[str] | None = None) -> int:
    """``main.py``: the flags of `autoprune prune`, with the model as ``--model``."""
    parser = Parser(prog="main.py", description=INTRODUCTION, examples=CLASSIC)
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _guarded(lambda: list_tasks(words) if asks_for_tasks(words) else _prune(_flags_of(parser, words)))


def _flags_of(parser: Parser, arguments: Sequence[str]) -> dict[str, object]:
    add_flags(parser, optional_model=True)
    add_recipe(parser)
    chosen = parser.parse_args(arguments)
    values = beneath(given(chosen), chosen.recipe)
    if "model" not in values:
        raise RecipeError("--model is missing: give a hub id, a local directory, or `demo`; --help lists the flags")
    return values


def _console(arguments: list[str]) -> int:
    if asks_for_tasks(arguments):
        return list_tasks(arguments)
    parser = Parser(prog="autoprune", description=INTRODUCTION, examples=EXAMPLES)
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    add_commands(commands)
    chosen = parser.parse_args(arguments)
    if chosen.command not in ("prune", "eval"):
        require_alone(f"autoprune {chosen.command}")
    if chosen.command == "reproduce":
        return _reproduce(chosen, given(chosen))
    if chosen.command in ELSEWHERE:
        return ELSEWHERE[chosen.command](chosen)
    if chosen.command == "verify":
        return _verify(chosen.directory, chosen.model, trust_remote_code=chosen.trust_remote_code)
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
    values = beneath(values, chosen.recipe)
    if "model" not in values:
        raise RecipeError(
            "no model is named; write `autoprune prune MODEL OUT --sparsity 2:4`, or give --model; `autoprune prune"
            " --help` lists the flags"
        )
    return values


def _prune(values: dict[str, object]) -> int:
    recipe = recipe_from_flat(values)
    output = recipe.output
    if recipe.run.quiet and not (output.save_model or output.save_ppl or output.save_zeroshot):
        raise RecipeError(
            "--quiet shows nothing and nothing is saved; add --save_model, --save_ppl or --save_zeroshot, or leave out"
            " --quiet"
        )
    from autoprune.cli.show import show_result
    from autoprune.report.progress import watching

    here = launched()
    quiet = recipe.run.quiet or (here is not None and not here.first)
    with watching(quiet=quiet) as emit:
        from autoprune.run.api import run

        nothing_else = not (output.save_model or recipe.zeroshot.tasks)  # would come out
        result = run(recipe, emit, measure=True if nothing_else else None)
    if not quiet:
        show_result(result)
    return 0


def _inspect(values: dict[str, object]) -> int:
    from autoprune.cli.show import show_inspection

    recipe = recipe_from_flat({"sparsity_ratio": 0.5, **values})
    from autoprune.run.inspect import inspect_recipe

    show_inspection(inspect_recipe(recipe))
    return 0


def _verify(directory: str, model: str | None, *, trust_remote_code: bool) -> int:
    from autoprune.cli.show import show_audit
    from autoprune.report.progress import watching

    with watching(quiet=False) as emit:
        from autoprune.evaluation.audit import audit, find_dense

        dense = find_dense(Path(directory), model, emit)
        report = audit(Path(directory), dense, emit, trust_remote_code=trust_remote_code)
    show_audit(report)
    return 0 if report.sound else 1


def _bench(grid: str, out: str, jobs: int) -> int:
    from autoprune.bench.bench import benchmark
    from autoprune.report.progress import watching

    with watching(quiet=False) as emit:
        summary = benchmark(grid, out, jobs=jobs, emit=emit)
    from autoprune.cli.show import show_bench

    show_bench(summary)
    return 1 if summary.failed else 0


def _report(chosen: argparse.Namespace) -> int:
    from autoprune.report.needs import check_pages
    from autoprune.report.publish import published, published_comparison
    from autoprune.results.codec import read_rows
    from autoprune.results.comparison import read_comparison
    from autoprune.results.variants import with_references

    if chosen.format == "html":
        check_pages("--format html")
    if (compared := read_comparison(chosen.results)) is not None:
        text = published_comparison(compared, chosen.format, title=chosen.title or "")
    else:
        rows = read_rows(chosen.results)
        shown = rows if chosen.format == "csv" else with_references(rows)  # a line of it is a run
        text = published(shown, chosen.format, title=chosen.title or "AutoPrune results")
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
    from autoprune.cli.show import show_reproduction
    from autoprune.report.progress import watching

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


def _guarded(command: Callable[[], int]) -> int:
    try:
        status = command()
        sys.stdout.flush()
        return status
    except OSError as error:
        if not _output_failed():
            raise
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            return 128 + signal.SIGPIPE
        print(f"error: standard output can't be written ({error.strerror}); choose another place", file=sys.stderr)
        return 2
    except AutoPruneError as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _output_failed() -> bool:
    """Whether standard output takes nothing any more; then what is left of it goes nowhere, without a second error."""
    try:
        out = sys.stdout.fileno()
    except (OSError, ValueError):  # a stand-in, as in tests and notebooks
        return False
    try:
        os.write(out, b"\n")  # a flush that has failed once may succeed the next time, with nothing written
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
        return True
    return False


def _say(error: AutoPruneError) -> None:
    """Prints the message; of several processes the first one does, unless it does not know of the error."""
    try:
        here = launched()
    except AutoPruneError:  # which is the error to be told
        here = None
    if here is None or here.first or not error.everywhere:
        told = f"error: {error}" if here is None else f"error: rank {here.rank}: {error}"
        print(_fitted(told) if sys.stderr.isatty() else told, file=sys.stderr)


def _fitted(text: str) -> str:
    """Lines that are too long for the terminal broken between words, which the terminal itself does not."""
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) if len(line) > width else line
        for line in text.splitlines()
    )


if __name__ == "__main__":
    sys.exit(main())
