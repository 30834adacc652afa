"""What the documentation says of the code is true: flags, commands, links, the tree of files, the worked example.

The tables of flags in README are made from the recipe: ``python tests/rules/test_docs.py`` writes them anew.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from autoprune.bench.grid import read_grid
from autoprune.cli import main as command_line
from autoprune.cli.flags import Parser, given
from autoprune.recipe.recipe import groups, recipe_from_flat

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXAMPLE = ROOT / "docs" / "adding-a-step.md"
COMMANDS = ("python main.py ", "autoprune ")
# A machine's own folders, and hosts that packages come from, have no place in a text for everyone.
UNWANTED = re.compile(r"(?<![\w.:/~}-])/(?:work|home|root|Users|tmp)/|(?:download\.pytorch|pypi)\.org|huggingface\.co")


def between(text: str, name: str) -> str:
    """What stands between ``<!-- name:begin … -->`` and ``<!-- name:end -->``."""
    match = re.search(rf"<!-- {name}:begin.*?-->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert match, f"no {name}:begin … {name}:end"
    return match[1]


def flag_tables() -> str:
    """The tables of flags: one for every group of the recipe."""
    return "".join(f"\n**{_title(group.type)}**\n\n{_table(group.type)}" for group in groups()) + "\n"


def _title(group: type) -> str:
    return (group.__doc__ or "").split("(")[0].strip().splitlines()[0].rstrip(".")


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
    return (field.metadata["help"].replace("%%", "%") + listed).replace("|", r"\|")


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


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses a command line as the program would, and makes the recipe of it; runs nothing."""

    class Parsed(Exception):
        """Carries the arguments out before anything is done with them."""

    words = shlex.split(command, comments=True)
    classic = words[0] == "python"
    original = Parser.parse_args

    def stop(self: Parser, arguments: Sequence[str]) -> NoReturn:
        raise Parsed(original(self, arguments))

    monkeypatch.setattr(Parser, "parse_args", stop)
    entry = command_line._classic if classic else command_line._console
    try:
        entry(words[2:] if classic else words[1:])
    except Parsed as parsed:
        chosen = parsed.args[0]
        kind = "prune" if classic else chosen.command
        if kind in ("prune", "eval"):
            recipe_from_flat(given(chosen) | ({"sparsity_ratio": 0} if kind == "eval" else {}))
    except SystemExit as leaving:  # --help, --version
        assert not leaving.code


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


def _page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_readme_names_exactly_the_flags_of_the_recipe() -> None:
    named = re.findall(r"^\| `--(\w+)` \|", between(README.read_text(encoding="utf-8"), "flags"), re.MULTILINE)
    assert named == [f.name for group in groups() for f in dataclasses.fields(group.type)]


def test_readme_says_of_every_flag_what_the_recipe_says() -> None:
    written = between(README.read_text(encoding="utf-8"), "flags")
    assert written == flag_tables(), "the recipe has changed: run `python tests/rules/test_docs.py`"


@pytest.mark.parametrize("page", PAGES, ids=_page)
def test_every_flag_in_the_text_exists(page: Path) -> None:
    """``--name`` with an underscore or alone between backticks is a flag of ours; flags of other programs have
    hyphens.
    """
    known = {f.name for group in groups() for f in dataclasses.fields(group.type)} | {
        "help",
        "version",
        "out",
        "jobs",
        "tables",
        "format",
    }
    planned = set(re.findall(r"`--(\w+)", between(README.read_text(encoding="utf-8"), "not-yet")))
    named = set(re.findall(r"`--(\w+)[` ]", page.read_text(encoding="utf-8")))
    assert named - known - planned == set()


def test_what_is_not_yet_there_is_not_there_yet() -> None:
    known = {f.name for group in groups() for f in dataclasses.fields(group.type)}
    assert set(re.findall(r"`--(\w+)", between(README.read_text(encoding="utf-8"), "not-yet"))) & known == set()


CALLS = [(page, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "command"), CALLS, ids=[f"{_page(page)}: {command[:60]}" for page, command in CALLS])
def test_every_command_parses(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == EXAMPLE:  # its steps are not installed: test_docs_example.py runs them
        command = command.replace("--steps energy,careful --energy_power 1.5", "--steps wanda,refit")
    parse(command, monkeypatch)


def test_the_classic_command_is_in_readme() -> None:
    assert any(
        "--model huggyllama/llama-7b" in command and "--prune_barber" in command
        for command in commands(README.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("page", PAGES, ids=_page)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target}: no such file"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_page)
def test_no_path_of_a_machine_and_no_registry_host(page: Path) -> None:
    assert UNWANTED.findall(page.read_text(encoding="utf-8")) == []


def test_everything_in_the_annotated_tree_exists() -> None:
    (block,) = fenced(between(README.read_text(encoding="utf-8"), "tree"))
    paths = list(tree_paths(block))
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_page)
def test_source_files_named_in_the_text_exist(page: Path) -> None:
    """`src/autoprune/core/selection.py`, or shorter, `core/selection.py`."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|sh|json|md))`", page.read_text(encoding="utf-8"))
    known = {"my_package/steps.py"}
    assert [
        name
        for name in named
        if name not in known and not any((base / name).exists() for base in (ROOT, ROOT / "src/autoprune"))
    ] == []


def test_the_grid_in_the_text_can_be_read(tmp_path: Path) -> None:
    grids = fenced((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "toml")
    for number, code in enumerate(grids):
        (file := tmp_path / f"{number}.toml").write_text(code, encoding="utf-8")
        assert len(read_grid(file).cells) == 1 + 3 * 3  # dense; wanda at both targets, LLM-Barber at one; three seeds
    assert grids


PYTHON = [
    (page, code) for page in PAGES for code in fenced(page.read_text(encoding="utf-8"), "python") if page != EXAMPLE
]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[_page(page) for page, _ in PYTHON])
def test_python_in_the_text_calls_what_exists(page: Path, code: str) -> None:
    """It is not run, for it would prune and measure; names and options are looked up."""
    import autoprune

    options = {f.name for group in groups() for f in dataclasses.fields(group.type)} | {"tokenizer", "emit"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "autoprune":
            assert node.attr in autoprune.__all__
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "autoprune.prune",
            "autoprune.evaluate",
            "autoprune.inspect",
        ):
            assert {keyword.arg for keyword in node.keywords} <= options


if __name__ == "__main__":
    before, rest = README.read_text(encoding="utf-8").split("<!-- flags:begin", 1)
    mark, rest = rest.split("\n", 1)
    after = rest[rest.index("<!-- flags:end -->") :]
    README.write_text(f"{before}<!-- flags:begin{mark}\n{flag_tables()}{after}", encoding="utf-8")
