"""Figures in docs/ are those that the scripts and the recorded results give: none is typed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from autoprune.results.codec import from_jsonable
from autoprune.results.speed import ModelSpeed, SpeedResult
from autoprune.results.speed_tables import speed_table
from autoprune.results.table import to_markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def program(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script or a benchmark as a module."""
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def shown(page: str, name: str) -> str:
    """What stands between two marks of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {name}:begin -->\n")[1].split(f"\n<!-- {name}:end -->")[0]


def test_projected_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    script = program("scripts/project_memory.py", monkeypatch)
    assert shown("scale.md", "projected") == script.table()


def test_measured_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = program("benchmarks/memory.py", monkeypatch)
    runs = [
        bench.Run(**line | {"layout": bench.Layout(**line["layout"])})
        for line in json.loads((RESULTS / "memory.json").read_text())["runs"]
    ]
    assert shown("scale.md", "memory") == "\n".join(bench.lines(runs))
    assert [(run.model, run.what) for run in runs] == [(run.model, run.what) for run in bench.RUNS]


def test_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = program("benchmarks/growth.py", monkeypatch)
    points = {
        axis: [bench.Point(**point) for point in line]
        for axis, line in json.loads((RESULTS / "growth.json").read_text())["points"].items()
    }
    assert shown("scale.md", "growth") == bench.table(points)
    assert {axis: tuple(getattr(p, axis) for p in line) for axis, line in points.items()} == bench.AXES


def test_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = program("benchmarks/run.py", monkeypatch)
    facts = json.loads((RESULTS / "cpu.json").read_text())
    names = bench.Row.__dataclass_fields__
    rows = [bench.Row(**{name: value for name, value in line.items() if name in names}) for line in facts["rows"]]
    assert shown("performance.md", "bench") == bench.lines(rows, facts)


def test_speed_of_models() -> None:
    """What `autoprune speed` saved, and what its sentences say."""
    raw = json.loads((RESULTS / "speed.json").read_text())
    result = SpeedResult(tuple(from_jsonable(ModelSpeed, one) for one in raw["models"]), raw["settings"])
    assert shown("what-it-buys.md", "speed") == to_markdown(speed_table(result)).rstrip()
    page = " ".join((ROOT / "docs" / "what-it-buys.md").read_text(encoding="utf-8").split())
    assert all(sentence in page for sentence in result.sentences)


def test_cost_of_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = program("benchmarks/comparison.py", monkeypatch)
    assert shown("comparison.md", "comparison") == bench.table(json.loads((RESULTS / "comparison.json").read_text()))
