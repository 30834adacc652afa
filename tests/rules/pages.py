"""What the tests of the pages read them by: code blocks, commands, links, headings, marked parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXAMPLE = ROOT / "docs" / "adding-a-step.md"
COMMANDS = ("python main.py ", "autoprune ")


def named(path: Path) -> str:
    """A file as tests call it."""
    return path.relative_to(ROOT).as_posix()


def between(text: str, name: str) -> str:
    """What stands between ``<!-- name:begin … -->`` and ``<!-- name:end -->``."""
    match = re.search(rf"<!-- {name}:begin.*?-->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert match, f"no {name}:begin … {name}:end"
    return match[1]


def fenced(text: str, language: str | None = None) -> list[str]:
    """The contents of code blocks, of one language or of all."""
    found = re.findall(r"^```([\w-]*)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [code for word, code in found if language in (None, word)]


def commands(text: str) -> list[str]:
    """Command lines in code blocks, continued lines joined, and those between single backticks that give arguments."""
    lines = [
        line.strip().removeprefix("$ ") for code in fenced(text) for line in code.replace("\\\n", " ").splitlines()
    ]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [code for code in re.findall(r"`([^`\n]+)`", prose) if len(code.split()) > 2]
    return [line for line in [*lines, *inline] if line.startswith(COMMANDS)]


def tree_paths(block: str) -> Iterator[str]:
    """Paths of an annotated tree: two spaces of indentation a level, a comment after two or more spaces."""
    folders: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split(" · "):
            path = "".join([*folders[:depth], name])
            yield path
        folders[depth:] = [name] if name.endswith("/") else []


def links(text: str) -> list[str]:
    """Targets of links and images that are no addresses; code is no text."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    return [target for target in targets if not re.match(r"\w+:", target)]


def anchors(text: str) -> set[str]:
    """The names under which GitHub makes headings reachable."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")
        for head in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    }
