"""The demo model's texts: the King James Bible, by chapters."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

VERSE = re.compile(r"^\s*(?P<chapter>[1-3]?\s?[A-Za-z]+\s?\d+):\d+\s+(?P<text>.+)$")


def read_source(path: Path | None) -> str:
    """Return the Bible with verse references, from a file or from ``bible``."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            sys.exit(f"error: cannot read --text {path}: {error.strerror}")
    program = shutil.which("bible")
    if program is None:
        sys.exit(
            "error: the program `bible` is not installed; install the Debian package "
            "`bible-kjv` (apt-get install bible-kjv), or give a text file with --text "
            "(one verse a line, as in `Gen1:1 In the beginning ...`)"
        )
    done = subprocess.run([program, "-f", "gen1:1-rev22:21"], capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout:
        sys.exit(
            f"error: `bible -f gen1:1-rev22:21` failed (status {done.returncode}): "
            f"{done.stderr.strip()}; reinstall `bible-kjv` or give a file with --text"
        )
    return done.stdout


def split_chapters(source: str) -> list[str]:
    """Return the chapters as prose, one string each, without verse references."""
    chapters: dict[str, list[str]] = {}
    for line in source.splitlines():
        match = VERSE.match(line)
        if match:
            verse = " ".join(match["text"].split())
            chapters.setdefault(match["chapter"], []).append(verse)
    if len(chapters) < 100:
        sys.exit(
            f"error: only {len(chapters)} chapters found; the text needs one verse a line, as in `Gen1:1 In the"
            " beginning ...`"
        )
    return [" ".join(verses) for verses in chapters.values()]


def split_texts(chapters: list[str]) -> dict[str, list[str]]:
    """Hold out every 20th chapter; calibrate on every 13th of the remaining ones."""
    heldout = chapters[10::20]
    unseen = set(heldout)
    train = [chapter for chapter in chapters if chapter not in unseen]
    return {"train": train, "calibration": train[6::13], "heldout": heldout}
