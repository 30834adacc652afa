"""``autoprune shrink MODEL OUT``."""

from __future__ import annotations

import argparse

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.recipe.commands import SHRINK
from autoprune.recipe.options import ShrinkOptions

ABOUT = (
    "Writes a smaller dense model: fewer blocks, a narrower MLP, fewer experts. It is an ordinary checkpoint, which"
    " every engine runs as it runs the large one, with less to read and to multiply."
)
EXAMPLES = (
    "autoprune shrink MODEL OUT --blocks 0.2",
    "autoprune shrink MODEL OUT --mlp 0.25",
)


def add_shrink(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command and its flags."""
    command = commands.add_parser(
        "shrink",
        help="a smaller dense model: fewer blocks, a narrower MLP, fewer experts",
        description=ABOUT,
        examples=EXAMPLES,
    )
    command.add_argument("model_word", metavar="MODEL", help="the dense model: hub id, local directory, or `demo`")
    command.add_argument("place", metavar="OUT", help="where the smaller model goes")
    add_flags(command, SHRINK)


def run_shrink(chosen: argparse.Namespace) -> int:
    """Makes the model smaller, and says what went."""
    options = given(chosen, ShrinkOptions)
    quiet = bool(options.get("quiet"))
    from autoprune.cli.show import show_shrink
    from autoprune.report.progress import watching

    with watching(quiet=quiet) as emit:
        from autoprune.run.shrink import shrink

        result = shrink(chosen.model_word, chosen.place, emit=emit, **options)
    if not quiet:
        show_shrink(result)
    return 0
