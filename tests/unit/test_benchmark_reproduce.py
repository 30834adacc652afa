"""Published tables: what is reproduced passes, what is falsified differs, and what can't be had could not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoprune.bench import cell, runner
from autoprune.bench.reproduce import PUBLISHED, Comparison, Reproduction, read_tables, reproduce
from autoprune.cli.main import main
from autoprune.errors import RecipeError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cells of the shipped model's table lie, once they have run."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(autouse=True)
def cells_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each would import everything again."""

    def run(_self: runner.Workers, command: list[str], _said: object, _device: object) -> int:
        return cell.main(Path(command[-2]), Path(command[-1]))

    monkeypatch.setattr(runner.Workers, "_wait_for", run)


def falsified(place: Path, old: float, new: float) -> Path:
    """The published tables with one value of the shipped model's changed."""
    text = PUBLISHED.read_text(encoding="utf-8")
    head, demo, rest = re.split(r"(\[demo\].*?\[demo\.options\])", text, maxsplit=1, flags=re.DOTALL)
    assert demo.count(f"value = {old} ") == 1
    file = place / "tables.toml"
    file.write_text(head + demo.replace(f"value = {old} ", f"value = {new} ") + rest, encoding="utf-8")
    return file


def test_recorded_values_of_the_shipped_model(finished: Path) -> None:
    result = reproduce("demo", finished)
    assert [(c.row, c.verdict, c.reason) for c in result.comparisons] == [
        (c.row, "pass", None) for c in result.comparisons
    ]
    assert result.passed
    assert len(result.comparisons) == len(read_tables()["demo"]["rows"])


def test_falsified_value(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two percent more: that row differs, the others pass; exit status 1, and 0 with the true values."""
    table = read_tables()["demo"]
    value = table["rows"][1]["value"]
    tables = falsified(tmp_path, value, round(value * 1.02, 3))
    result = reproduce("demo", finished, tables=tables)
    assert [c.verdict for c in result.comparisons] == ["pass", "differs", *("pass" for _ in table["rows"][2:])]
    assert not result.passed
    (finished / "demo").mkdir(exist_ok=True)
    (finished / "demo/cells").symlink_to(finished / "cells")
    assert main(["reproduce", "demo", "--out", str(finished), "--tables", str(tables)]) == 1
    assert "differs" in capsys.readouterr().out
    assert main(["reproduce", "demo", "--out", str(finished)]) == 0


def test_model_that_is_not_to_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is said once, after the rows that it holds for, and the exit status is 1."""
    arguments = ["reproduce", "alps-llama2-7b", "--model", str(tmp_path / "llama"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert said.count("could not run") == 10 + 1
    assert "dense, magnitude 0.5, magnitude 4:8" in said
    assert "sparsegpt 2:4 could not run: ModelError: --model" in said
    assert "there is no such directory" in said


def test_verdicts() -> None:
    """Within the tolerance, just outside, and without a value."""
    inside, outside = Comparison("a", 10.0, 10.29, 0.03, None), Comparison("b", 10.0, 10.31, 0.03, None)
    missing = Comparison("c", 10.0, None, 0.03, "no model")
    assert [c.verdict for c in (inside, outside, missing)] == ["pass", "differs", "could not run"]
    table = Reproduction("t", "paper", (inside, outside, missing)).table
    assert table.rows[1] == ("b", "10", "10.31", "+3.10%", "±3%", "differs")
    assert table.rows[2][2:] == ("-", "-", "±3%", "could not run")


def test_published_tables() -> None:
    """Those of the papers: seqlen 2048, and every row a recipe."""
    tables = read_tables()
    assert {"demo", "alps-llama2-7b", "alps-llama2-13b", "alps-llama3-8b", "wanda-llama-7b"} <= set(tables)
    for name, table in tables.items():
        if name != "demo":
            assert table["options"]["seqlen"] == 2048
            assert table["options"]["calibration_data"] == "c4"
    assert {row["value"] for row in tables["alps-llama3-8b"]["rows"]} == {
        6.14,
        54.4,
        182,
        2403,
        9.87,
        14.52,
        24.36,
        9.47,
        12.40,
        16.35,
    }


def test_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    assert "alps-llama2-7b: ALPS paper" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[demo", "is no readable TOML"),
        ("demo = 1", "table demo must have source"),
        (
            '[demo]\nsource = "x"\ntolerance = 0.1\nrows = [{method = "wanda", target = 0.5}]\n[demo.options]',
            "every row needs a method and a positive value",
        ),
        (
            '[demo]\nsource = "x"\ntolerance = 0.1\nrows = [{method = "wanda", value = 3}]\n[demo.options]',
            "row wanda needs a target",
        ),
        (
            '[other]\nsource = "x"\ntolerance = 0.1\nrows = []\n[other.options]',
            "there is no published table 'demo'; tables: other",
        ),
    ],
)
def test_tables_of_the_user(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "tables.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=expected):
        reproduce("demo", tmp_path / "out", tables=file)
