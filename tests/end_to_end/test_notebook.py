"""The notebook's code runs from top to bottom, in this process; every cell's last expression is shown as a notebook
would.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/quickstart.ipynb"


def code_cells() -> list[str]:
    """The sources of its code cells."""
    return [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


def execute(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell; returns the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return eval(compile(last, NOTEBOOK.name, "eval"), names) if last else None


def test_every_cell_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.gcf().savefig(tmp_path / "figure.png"))
    names: dict[str, Any] = {}
    shown = [execute(source, names) for source in code_cells()]
    plt.close("all")
    dense, layers, _, compared, _, errors = shown
    assert list(dense.text) == ["demo"]
    assert (layers.zeros * 2 == layers.weights).all()
    assert (compared.perplexity > dense.perplexity[0]).all()
    assert compared.sparsity.between(0.49, 0.5).all()
    assert errors.shape == (7, 5)
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png"}


def test_notebook_is_shipped_without_outputs() -> None:
    """They would be out of date before long."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
