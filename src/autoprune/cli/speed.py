"""``autoprune speed MODEL [MODEL …]``."""

from __future__ import annotations

import argparse

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.errors import RecipeError
from autoprune.recipe.commands import SPEED
from autoprune.recipe.options import SpeedOptions

ABOUT = (
    "Measures on this machine how long models take to load, to the first token and for each further one, and what they"
    " take in memory and on disk, all in turn; and says what was gained beside the first of them."
)
EXAMPLES = ("autoprune speed MODEL OUT",)


def add_speed(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command and its flags."""
    command = commands.add_parser(
        "speed",
        help="how quick and how large models are on this machine",
        description=ABOUT,
        examples=EXAMPLES,
    )
    command.add_argument(
        "models", metavar="MODEL", nargs="+", help="hub id, local directory, or `demo`; compared with the first"
    )
    command.add_argument("--save", metavar="DIR", help="write the tables and JSON here")
    add_flags(command, SPEED)


def run_speed(chosen: argparse.Namespace) -> int:
    """Measures and shows. Raises: RecipeError if nothing would be shown or saved."""
    options = given(chosen, SpeedOptions)
    quiet = bool(options.get("quiet"))
    if quiet and not chosen.save:
        raise RecipeError("--quiet shows nothing and nothing is saved; add --save, or leave out --quiet")
    from autoprune.cli.show import show_speed
    from autoprune.report.progress import watching

    with watching(quiet=quiet) as emit:
        from autoprune.run.speed import speed

        result = speed(chosen.models, save=chosen.save, emit=emit, **options)
    if not quiet:
        show_speed(result, chosen.save)
    return 0
