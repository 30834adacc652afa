"""``--tasks list``: says which tasks there are, whatever else the command line holds or lacks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

LIST = "list"


def asks_for_tasks(words: Sequence[str]) -> bool:
    """Whether the words of a command ask for the list; what is wrong with others is for its own parser to say."""
    return _read(words).tasks == LIST


def list_tasks(words: Sequence[str]) -> int:
    """Prints them, those of ``--tasks_path`` among them, a line each. Returns the exit status."""
    from autoprune.evaluation.tasks import known_tasks

    print("\n".join(known_tasks(_read(words).tasks_path)))
    return 0


def _read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--tasks", "--tasks_path"):
        parser.add_argument(flag, nargs="?")
    return parser.parse_known_args(words)[0]
