"""What the documentation says of the code is true: flags, commands, links, files.

The tables of flags (docs/flags.md), the tree of files (docs/tree.md) and the types of options come from the source:
``python tests/rules/test_docs.py`` writes them anew.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import made_keywords
import made_pages
import pytest
from pages import EXAMPLE, PAGES, README, ROOT, anchors, between, commands, fenced, links, named, tree_paths

from autoprune.bench.grid import read_grid
from autoprune.cli import main as command_line
from autoprune.cli.flags import Parser, given
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.steps.classic import EFFORTS

FLAGS, TREE = made_pages.FLAGS, made_pages.TREE
# Flags of single commands, and of the step that docs/adding-a-step.md adds.
OTHERS = {"help", "version", "out", "jobs", "tables", "save", "unrelated", "format", "title", "energy_power", "recipe"}
README_LINES = 200
# A machine's own folders, and hosts that packages come from, have no place in a text for everyone.
UNWANTED = re.compile(r"(?<![\w.:/~}-])/(?:work|home|root|Users|tmp)/|(?:download\.pytorch|pypi)\.org|huggingface\.co")


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
    entry = command_line.classic if classic else command_line.main
    try:
        assert not entry(words[2:] if classic else words[1:]), "the program refuses the command"
    except Parsed as parsed:
        chosen = parsed.args[0]
        kind = "prune" if classic else chosen.command
        if kind in ("prune", "eval") and getattr(chosen, "recipe", None) is None:
            recipe_from_flat(given(chosen) | ({"sparsity_ratio": 0} if kind == "eval" else {}))
    except SystemExit as leaving:  # --help, --version
        assert not leaving.code


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < README_LINES


def test_tables_of_flags_say_what_the_recipe_says() -> None:
    written = between(FLAGS.read_text(encoding="utf-8"), "flags")
    listed = re.findall(r"^\| `--(\w+)` \|", written, re.MULTILINE)
    assert listed == made_pages.flag_names()
    assert written == made_pages.flag_tables(), "the recipe has changed: run `python tests/rules/test_docs.py`"


def test_types_of_options_say_what_the_recipe_says() -> None:
    written = made_keywords.FILE.read_text(encoding="utf-8")
    assert written == made_keywords.keywords(), "the recipe has changed: run `python tests/rules/test_docs.py`"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_flag_in_the_text_exists(page: Path) -> None:
    """``--name`` with an underscore or alone between backticks is a flag of ours; flags of other programs have
    hyphens.
    """
    known = {*made_pages.flag_names(), *OTHERS}
    mentioned = set(re.findall(r"`--(\w+)[` ]", page.read_text(encoding="utf-8")))
    assert mentioned - known == set()


def test_efforts_are_those_of_the_page() -> None:
    text = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8").split("## ria")[0]
    for name, stands_for in EFFORTS.items():
        assert f"`{name}`" in text
        assert f"`{','.join(stands_for['steps'])}`" in text
        assert f"{stands_for['epochs']} epochs" in text if "epochs" in stands_for else True


CALLS = [(page, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "command"), CALLS, ids=[f"{named(page)}: {command[:60]}" for page, command in CALLS])
def test_every_command_parses(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == EXAMPLE:  # its steps are not installed: test_docs_example.py runs them
        command = command.replace("--steps energy,careful --energy_power 1.5", "--steps wanda,refit")
    parse(command, monkeypatch)


def test_the_classic_command_is_in_readme() -> None:
    assert any(
        "--model huggyllama/llama-7b" in command and "--prune_barber" in command
        for command in commands(README.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target}: no such file"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_path_of_a_machine_and_no_registry_host(page: Path) -> None:
    assert UNWANTED.findall(page.read_text(encoding="utf-8")) == []


def test_everything_in_the_annotated_tree_exists_and_every_room_is_there() -> None:
    written = between(TREE.read_text(encoding="utf-8"), "tree")
    assert written == made_pages.tree(), "files have changed: run `python tests/rules/test_docs.py`"
    (block,) = fenced(written)
    paths = list(tree_paths(block))
    assert len(paths) > 100
    assert [path for path in paths if not (ROOT / path).exists()] == [], "run `python tests/rules/test_docs.py`"
    rooms = {f"{named(file.parent)}/" for file in (ROOT / "src/autoprune").glob("*/*.py")}
    assert rooms - set(paths) == set(), "run `python tests/rules/test_docs.py`"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_source_files_named_in_the_text_exist(page: Path) -> None:
    """`src/autoprune/core/selection.py`, or shorter, `core/selection.py`."""
    mentioned = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|sh|json|md))`", page.read_text(encoding="utf-8"))
    known = {"my_package/steps.py"}
    assert [
        name
        for name in mentioned
        if name not in known and not any((base / name).exists() for base in (ROOT, ROOT / "src/autoprune"))
    ] == []


def test_the_grid_in_the_text_can_be_read(tmp_path: Path) -> None:
    grids = fenced((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "toml")
    for number, code in enumerate(grids):
        (file := tmp_path / f"{number}.toml").write_text(code, encoding="utf-8")
        assert len(read_grid(file).cells) == 1 + 3 * 3  # dense; wanda at both targets, LLM-Barber at one; three seeds
    assert grids


if __name__ == "__main__":
    made_pages.write()
