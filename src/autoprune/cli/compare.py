"""``autoprune compare DENSE PRUNED [PRUNED …]``."""

from __future__ import annotations

import argparse
from typing import Any

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.errors import RecipeError
from autoprune.recipe.commands import COMPARE

ABOUT = (
    "Says how far pruned models' predictions are from the dense model's: KL divergence, the probability of the tokens"
    " that follow, the same first choice, perplexity; and with --tasks, which answers flipped."
)
EXAMPLES = (
    "autoprune compare MODEL OUT",
    "autoprune compare MODEL OUT --tasks boolq,arc_easy",
)


def add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command and its flags."""
    command = commands.add_parser(
        "compare",
        help="how far pruned models' predictions are from the dense model's",
        description=ABOUT,
        examples=EXAMPLES,
    )
    command.add_argument("dense", metavar="DENSE", help="the dense model: hub id, local directory, or `demo`")
    command.add_argument("pruned", metavar="PRUNED", nargs="+", help="models that were pruned from it")
    command.add_argument(
        "--unrelated", action="store_true", help="go on with models that were not pruned from DENSE, of one vocabulary"
    )
    command.add_argument("--save", metavar="DIR", help="write tables, JSON and a page here")
    add_flags(command, COMPARE)


def run_compare(chosen: argparse.Namespace) -> int:
    """Compares and shows. Raises: RecipeError if nothing would be shown or saved."""
    options: dict[str, Any] = given(chosen)
    quiet = bool(options.get("quiet"))
    if quiet and not chosen.save:
        raise RecipeError("--quiet shows nothing and nothing is saved; add --save, or leave out --quiet")
    from autoprune.cli.show import show_comparison
    from autoprune.report.progress import watching

    with watching(quiet=quiet) as emit:
        from autoprune.run.compare import compare

        result = compare(
            chosen.dense, chosen.pruned, unrelated=chosen.unrelated, save=chosen.save, emit=emit, **options
        )
    if not quiet:
        show_comparison(result, chosen.save)
    return 0
