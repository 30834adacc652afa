"""``autoprune rotate MODEL OUT``."""

from __future__ import annotations

import argparse

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.recipe.commands import ROTATE
from autoprune.recipe.options import RotationOptions

ABOUT = (
    "Writes the model in another basis of its hidden states: an ordinary dense checkpoint of the same function, in"
    " which importance is gathered in fewer weights. Prune it afterwards like any other model."
)
EXAMPLES = (
    "autoprune rotate MODEL ROTATED",
    "autoprune prune ROTATED OUT --sparsity 2:4",
)


def add_rotate(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command and its flags."""
    command = commands.add_parser(
        "rotate",
        help="the same model in a basis that loses less by pruning",
        description=ABOUT,
        examples=EXAMPLES,
    )
    command.add_argument("model_word", metavar="MODEL", help="the dense model: hub id, local directory, or `demo`")
    command.add_argument("place", metavar="OUT", help="where the rotated model goes")
    add_flags(command, ROTATE)


def run_rotate(chosen: argparse.Namespace) -> int:
    """Rotates, and says what came of it."""
    options = given(chosen, RotationOptions)
    quiet = bool(options.get("quiet"))
    from autoprune.cli.show import show_rotation
    from autoprune.report.progress import watching

    with watching(quiet=quiet) as emit:
        from autoprune.run.rotate import rotate

        result = rotate(chosen.model_word, chosen.place, emit=emit, **options)
    if not quiet:
        show_rotation(result)
    return 0
