"""Python in the pages calls what exists; that of docs/python.md runs, and test_docs_example.py runs that of
docs/adding-a-step.md.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
from pages import EXAMPLE, PAGES, ROOT, fenced, named

from autoprune.recipe.recipe import groups

PYTHON = [
    (page, code) for page in PAGES for code in fenced(page.read_text(encoding="utf-8"), "python") if page != EXAMPLE
]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[named(page) for page, _ in PYTHON])
def test_python_in_the_text_calls_what_exists(page: Path, code: str) -> None:
    """It is not run, for it would prune and measure; names and options are looked up."""
    import autoprune

    options = {f.name for group in groups() for f in dataclasses.fields(group.type)}
    options |= {"tokenizer", "emit", "ratios", "unrelated", "save", None}  # None: **options
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "autoprune":
            assert node.attr in autoprune.__all__
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "autoprune.prune",
            "autoprune.evaluate",
            "autoprune.compare",
            "autoprune.inspect",
        ):
            assert {keyword.arg for keyword in node.keywords} <= options


def test_the_page_about_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in fenced((ROOT / "docs/python.md").read_text(encoding="utf-8"), "python"):
        exec(compile(code, "python.md", "exec", dont_inherit=True), names)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "again"}
