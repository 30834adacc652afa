"""Makes the pages that follow from the source: docs/flags.md from the recipe, docs/tree.md from the files.

``python tests/rules/test_docs.py`` writes them anew.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import made_keywords
from pages import ROOT

from autoprune.recipe.options import RotationOptions, ShrinkOptions, SpeedOptions
from autoprune.recipe.recipe import Group, groups

FLAGS, TREE = ROOT / "docs" / "flags.md", ROOT / "docs" / "tree.md"
SOURCES = ("main.py", "src/autoprune", "scripts", "benchmarks", "examples")
WIDTH = 118


def flag_tables() -> str:
    """The tables of flags: one for every group of options and every step that has some."""
    tables = [f"\n## {_title(group)}\n\n{_table(group.type)}" for group in groups()]
    alone = {"rotate": RotationOptions, "shrink": ShrinkOptions, "speed": SpeedOptions}
    tables += [f"\n## `autoprune {name}` alone\n\n{_table(options)}" for name, options in alone.items()]
    return "".join(tables) + "\n"


def flag_names() -> list[str]:
    """The flags of these tables, in their order."""
    types = [*(group.type for group in groups()), RotationOptions, ShrinkOptions, SpeedOptions]
    return [f.name for kind in types for f in dataclasses.fields(kind)]


def _title(group: Group) -> str:
    words = (group.type.__doc__ or "").split("\n")[0].split("(")[0].strip().rstrip(".")
    return f"Step `{group.name}`: {words.removeprefix('Hyper-parameters of ')}" if group.step else words


def _table(group: type) -> str:
    lines = [(f"`--{f.name}`", _default(f), _meaning(f)) for f in dataclasses.fields(group)]
    return "| flag | default | meaning |\n|---|---|---|\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get("required"):
        return "needed"
    if isinstance(field.default, bool):
        return "off"
    if field.default in (None, ()):
        return "–"
    return f"`{','.join(field.default) if isinstance(field.default, tuple) else field.default}`"


def _meaning(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata.get("choices")
    listed = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    help = field.metadata["help"].replace("%%", "%").replace("*.mlp.*=0.6", "`*.mlp.*=0.6`")
    return (help + listed).replace("|", r"\|")


def tree() -> str:
    """Every source file with the first words of its docstring, as an annotated tree."""
    lines = [line for name in SOURCES if (ROOT / name).exists() for line in _branch(ROOT / name, 0, name)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _branch(path: Path, depth: int, name: str) -> list[str]:
    if path.is_file():
        return [_line(name, depth, _about(path))]
    files = [file for file in sorted(path.glob("*.py")) if file.name != "__init__.py"]
    folders = [child for child in sorted(path.iterdir()) if child.is_dir() and list(child.glob("*.py"))]
    entry = path / "__init__.py"
    found = [_line(f"{name}/", depth, _about(entry) if entry.is_file() else "")]
    for child in [*files, *folders]:
        found += _branch(child, depth + 1, child.name)
    return found


def _about(path: Path) -> str:
    """The first sentence of a docstring, or as much of it as fits."""
    words = re.split(r"\.\s", " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split()) + " ")[0]
    return words.replace("``", "`")


def _line(name: str, depth: int, about: str) -> str:
    start = f"{'  ' * depth}{name}".ljust(30)
    room = WIDTH - len(start) - 2
    if len(about) > room:
        cut = max(about.rfind(mark, 0, room) for mark in (":", ";", ",", " ("))
        about = about[: cut if cut > 14 else about.rfind(" ", 0, room)]
    return f"{start}  {about}".rstrip()


def write() -> None:
    """Puts both between the marks of their pages, and the types of the options into their file."""
    for page, mark, made in ((FLAGS, "flags", flag_tables()), (TREE, "tree", tree())):
        text = page.read_text(encoding="utf-8")
        begin = text.index("\n", text.index(f"<!-- {mark}:begin")) + 1
        end = text.index(f"<!-- {mark}:end -->", begin)
        page.write_text(text[:begin] + made + text[end:], encoding="utf-8")
    made_keywords.FILE.write_text(made_keywords.keywords(), encoding="utf-8")
