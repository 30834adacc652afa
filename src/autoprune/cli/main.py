"""``autoprune prune | eval | inspect`` and the classic ``main.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import autoprune
from autoprune.cli.flags import Parser, add_flags, given
from autoprune.errors import AutoPruneError
from autoprune.recipe import recipe_from_flat

INTRODUCTION = "Prunes Hugging Face causal language models in one shot: magnitude, Wanda, SparseGPT and LLM-Barber."
EVALUATION_GROUPS = ("model", "calibration", "evaluation", "output", "run")


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
    for name, about in (("prune", "prune a model"), ("eval", "measure a model as it is"), ("inspect", "describe a model: blocks, layers, coverage, cost")):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".", allow_abbrev=False)
        add_flags(command, None if name != "eval" else EVALUATION_GROUPS, positional=None if name == "prune" else "model")
    chosen = parser.parse_args(arguments)
    values = given(chosen)
    if chosen.command == "inspect":
        return _inspect(values)
    return _prune(values if chosen.command == "prune" else values | {"sparsity_ratio": 0})


def _prune(values: dict[str, object]) -> int:
    recipe = recipe_from_flat(values)
    from autoprune.cli.progress import watching
    from autoprune.cli.show import show_result

    with watching(quiet=recipe.run.quiet) as emit:
        from autoprune.api import run

        result = run(recipe, emit)
    if not recipe.run.quiet:
        show_result(result)
    return 0


def _inspect(values: dict[str, object]) -> int:
    from autoprune.cli.show import show_inspection

    recipe = recipe_from_flat({"sparsity_ratio": 0.5, **values} if values.get("sparsity_type", "unstructured") == "unstructured" else values)
    from autoprune.inspection import inspect_recipe

    show_inspection(inspect_recipe(recipe))
    return 0


def _guarded(command: object, arguments: list[str]) -> int:
    try:
        return command(arguments)  # type: ignore[operator, no-any-return]
    except AutoPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
