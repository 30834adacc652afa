"""The notebook's code runs from top to bottom, in this process; every cell's last expression is shown as a notebook
would, and the outputs that it is shipped with are still what comes out.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/quickstart.ipynb"
CODE = [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell; returns the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return eval(compile(last, NOTEBOOK.name, "eval"), names) if last else None


def shipped(cell: dict[str, Any]) -> str:
    """The text of the outputs that are committed."""
    parts = [output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]]
    return "".join("".join(part) for part in parts)


def test_every_cell_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))  # the dense model is measured once
    monkeypatch.setattr(plt, "show", lambda: plt.gcf().savefig(tmp_path / "figure.png"))
    names: dict[str, Any] = {}
    shown = [execute("".join(cell["source"]), names) for cell in CODE]
    plt.close("all")
    dense, result, layers, _, mine, by_layer, recipes, _, errors = shown
    assert list(dense.perplexity) == ["demo"]
    assert result.row.target == "2:4"
    assert (layers.zeros * 2 == layers.weights).all()
    assert list(mine) == ["twelve chapters"]
    assert list(by_layer.columns) == [1, 2, 3, 4]
    assert by_layer[1]["mlp.up_proj"] == pytest.approx(0.6, abs=0.01)
    assert (recipes.perplexity > dense.perplexity["demo"]).all()
    assert recipes.sparsity.between(0.49, 0.5).all()
    assert errors.shape == (7, 5)
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png"}
    for value, text in ((recipes.perplexity, CODE[6]), (dense.perplexity.values(), CODE[0]), (mine.values(), CODE[4])):
        numbers = [float(number) for number in re.findall(r"\d+\.\d+", shipped(text))]
        assert all(any(number == pytest.approx(v, rel=0.01) for number in numbers) for v in value), shipped(text)


def test_notebook_is_shipped_with_outputs() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(cell["outputs"] for cell in CODE)
    assert not [
        out
        for cell in CODE
        for out in cell["outputs"]
        if out["output_type"] == "error" or "stderr" in str(out.get("name"))
    ]
