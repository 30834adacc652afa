"""README's results are those of the runs that it names: every row of them, no other, with the settings that are used
there.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from autoprune.bench.grid import read_grid
from autoprune.recipe.recipe import Recipe
from autoprune.results.codec import to_jsonable
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow, PerplexityResult
from autoprune.results.variants import variants_of
from autoprune.run.labels import method_label, target_label

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables() -> list[list[list[str]]]:
    """The cells of both tables, without header and rule."""
    part = re.search(r"<!-- results:begin.*?-->\n(.*?)<!-- results:end -->", README, re.DOTALL)
    assert part
    found = [re.findall(r"^\|.*\|$", block, re.MULTILINE) for block in part[1].split("\n\n")]
    return [
        [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[2:]] for lines in found if lines
    ]


def blank(recipe: Recipe, value: float = 1.0) -> EvaluationRow:
    """A row of a recipe, as if it had been run."""
    dense = recipe.target is None
    words = ("dense", "dense") if dense else (method_label(recipe), target_label(recipe.target))
    return EvaluationRow(
        *words, 0.0 if dense else 0.5, (PerplexityResult("demo", value, 256, 10, 2560),), recipe.to_dict()
    )


def names(recipes: list[Recipe]) -> list[tuple[str, str]]:
    """Method and target as the tables name them."""
    return [(variant.name, variant.target) for variant in variants_of([blank(recipe) for recipe in recipes])]


def test_rows_are_those_of_the_demo_and_of_the_grid() -> None:
    demo, bench = tables()
    program = script("demo")
    assert [(line[0], line[1]) for line in demo] == names(
        [program.recipe_of(flags) for flags in program.commands(Path("out"))]
    )
    cells = read_grid(ROOT / "benchmarks/demo.toml").cells
    assert [(line[0], line[1]) for line in bench] == names([cell.recipe for cell in cells])
    assert len(cells) == 3 * (len(bench) - 1) + 1, "three seeds of everything but the dense model"


def test_what_both_tables_measure_agrees() -> None:
    """They draw other samples, so not to the last digit; a table of another model would differ by more."""
    demo, bench = ({(line[0], line[1]): float(line[3].split()[0]) for line in table} for table in tables())
    assert demo["dense", "dense"] == bench["dense", "dense"]
    assert demo["magnitude", "50 %"] == bench["magnitude", "50 %"]
    for name in demo:
        assert demo[name] == pytest.approx(bench[name], rel=0.03), name


def test_picture_is_there() -> None:
    """It is made together with the tables."""
    assert (ROOT / "img/demo_results.png").read_bytes().startswith(b"\x89PNG")
    assert "(img/demo_results.png)" in README


def test_findings_are_what_every_draw_says() -> None:
    """One draw of three that differs is enough for doubt; less than a thousandth is nothing."""
    program = script("update_results")
    factors = {
        "block": (0.9, 0.95, 0.99),
        "layer": (1.2, 1.1, 1.3),
        "output1": (1.0, 1.0005, 0.9995),
        "input1": (0.9, 1.1, 0.9),
    }
    cells = [
        Recipe().to_dict() | {"pruning": {"sparsity_ratio": 0.5}, "calibration": {"seed": seed}} for seed in range(3)
    ]
    rows = [
        EvaluationRow("wanda", "50 %", 0.5, (PerplexityResult("demo", 20.0, 256, 10, 2560),), settings)
        for settings in cells
    ]
    for granularity, three in factors.items():
        for settings, factor in zip(cells, three, strict=True):
            barber = settings | {"barber": {"prune_granularity": granularity, "threshold": 0.1}}
            rows.append(
                EvaluationRow(
                    f"wanda+barber ({granularity} 0.1)",
                    "50 %",
                    0.5,
                    (PerplexityResult("demo", 20.0 * factor, 256, 10, 2560),),
                    barber,
                )
            )
    found = dict(
        re.findall(r"\* \*\*(.*?)\*\*: wanda at 50 % with (\w+) 0\.1", "".join(program.findings(Results(rows))))
    )
    assert found == {
        "It gains": "block",
        "It loses": "layer",
        "It changes nothing": "output1",
        "It depends on the draw": "input1",
    }


def test_results_are_written_between_the_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the files of the two runs; without them, with a failed cell, nothing is written."""
    program, demo, bench = script("update_results"), tmp_path / "demo", tmp_path / "bench"
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results:begin (x) -->\nold\n<!-- results:end -->\nafter\n")
    monkeypatch.setattr(program, "README", page)
    monkeypatch.setattr(program, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr("sys.argv", ["update_results.py", "--demo", str(demo), "--bench", str(bench)])
    assert program.main() == 2
    assert "run `make demo`" in capsys.readouterr().err
    rows = [blank(cell.recipe, 10.0 + i) for i, cell in enumerate(read_grid(ROOT / "benchmarks/demo.toml").cells)]
    for folder, values in ((demo, rows), (bench, [{"cell": "c", "row": row, "cost": None} for row in rows])):
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(to_jsonable(values)))
    assert program.main() == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- results:begin (x) -->\n`make demo` prints")
    assert text.endswith("<!-- results:end -->\nafter\n")
    assert "wanda+barber (block 0.1)" in text
    assert (tmp_path / "picture.png").is_file()
    (bench / "results.json").write_text(json.dumps([{"cell": "bad one", "row": None}]))
    assert program.main() == 2
    assert "'bad one' failed" in capsys.readouterr().err
    assert page.read_text() == text
