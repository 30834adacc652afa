"""Results of earlier runs: read from any file that holds some, set beside each other, and judged in words."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_report_samples import row, sample_rows

from autoprune.cli.main import main
from autoprune.errors import DataError
from autoprune.report import needs
from autoprune.report.publish import FORMATS, published
from autoprune.report.significance import findings, paired, two_sided
from autoprune.results.codec import dump_json, from_jsonable, read_rows, row_from_json
from autoprune.results.tidy import Results
from autoprune.results.types import About, Cost, EvaluationRow

LATEX = shutil.which("pdflatex") or shutil.which("tectonic")


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (3.182, 3, 0.05), (2.776, 4, 0.05), (4.604, 4, 0.01), (2.228, 10, 0.05)],
)
def test_probabilities_are_those_of_the_printed_tables(t: float, freedom: int, p: float) -> None:
    assert two_sided(t, freedom) == pytest.approx(p, rel=2e-3)
    assert two_sided(-t, freedom) == two_sided(t, freedom)
    assert two_sided(0.0, freedom) == pytest.approx(1.0)


def rows_of(values: dict[str, tuple[float, ...]]) -> list[EvaluationRow]:
    """One row a seed."""
    return [row(m, "50 %", v, seed=seed) for m, three in values.items() for seed, v in enumerate(three)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"a": (10.0, 12.0, 11.0), "b": (11.0, 13.1, 12.0)}, "a clear difference (paired t-test, p = 0.001"),
        ({"a": (10.0, 12.0, 11.0), "b": (10.5, 11.9, 11.2)}, "which may be chance (paired t-test, p = 0.3"),
        ({"a": (10.0,), "b": (11.0,)}, "higher by 1.00; one seed says nothing about chance"),
        ({"a": (10.0, 12.0), "b": (10.0, 12.0)}, "no difference"),
    ],
)
def test_significance_is_said_plainly(values: dict[str, tuple[float, ...]], says: str) -> None:
    """Pairs by seed: what makes one draw harder makes it harder for both."""
    (sentence,) = findings(Results(rows_of(values)))
    assert sentence.startswith("Best at 50 % on wikitext2 (128): a, ")
    assert says in sentence


def test_pairs_are_by_hand() -> None:
    results = Results(rows_of({"a": (10.0, 12.0, 11.0), "b": (11.0, 13.5, 12.0)}))
    mean, p, seeds = paired(results, *results.variants, results.texts[0])
    assert (mean, seeds) == (pytest.approx(3.5 / 3), 3)
    assert p == pytest.approx(two_sided((3.5 / 3) / (0.288675 / 3**0.5), 2), rel=1e-4)


def test_other_shares_of_zeros_are_no_rivals() -> None:
    shares = {"a": 0.7, "b": 0.7, "c": 0.55}
    rows = [row(m, "70 %", 9 - i, sparsity=s) for i, (m, s) in enumerate(shares.items())]
    said = list(findings(Results(rows)))
    assert said[0].startswith("Best at 70 % on wikitext2 (128): b, ")
    assert said[1] == "Not compared at 70 %, for their share of zeros is another: c."


def test_a_row_survives_json() -> None:
    """With all that it can hold; records of before, which lack a field, are read too."""
    whole = sample_rows()[2]
    whole = EvaluationRow(
        **{**vars(whole), "cost": Cost(1.0, 2, 0, {"x": 1.0}), "about": About(3, "float32", "cpu", "2026", {"t": "1"})}
    )
    assert row_from_json(json.loads(dump_json(whole))) == whole
    old = {k: v for k, v in json.loads(dump_json(whole)).items() if k not in ("cost", "about", "zeroshot")}
    assert row_from_json(old).about is None
    with pytest.raises(TypeError):
        from_jsonable(EvaluationRow, {"method": "a"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Results as a grid, the demo and single runs leave them."""
    rows = sample_rows()
    (tmp_path / "bench").mkdir()
    cells = [{"cell": "c", "error": None, "cost": {"seconds": 9.0, "peak_bytes": 5}, "row": r} for r in rows[:3]]
    (tmp_path / "bench/results.json").write_text(dump_json([*cells, {"cell": "bad", "error": "x", "row": None}]))
    (tmp_path / "demo.json").write_text(dump_json(rows[3:5]))
    (tmp_path / "ppl").mkdir()
    (tmp_path / "ppl/log_wanda_50pct.json").write_text(dump_json(rows[5]))
    return tmp_path


def test_results_are_read_from_whatever_holds_them(saved: Path) -> None:
    rows = read_rows([saved / "bench", saved / "demo.json", saved / "ppl"])
    assert [r.method for r in rows] == [r.method for r in sample_rows()[:6]]
    assert [r.cost.seconds if r.cost else None for r in rows] == [9.0, 9.0, 9.0, None, None, None]


@pytest.mark.parametrize("content", [None, "", "[3]", '{"a": 1}', "{}"])
def test_what_holds_no_results_is_named(saved: Path, content: str | None) -> None:
    file = saved / "other.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=r"other\.json: holds no results"):
        read_rows([file])
    (saved / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no results\.json"):
        read_rows([saved / "empty"])


@pytest.mark.parametrize("form", FORMATS)
def test_command(saved: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """To standard output, or to a file; exit status 2 and the reason where there is nothing."""
    assert main(["report", str(saved / "bench"), str(saved / "demo.json"), "--format", form]) == 0
    out = capsys.readouterr().out
    assert "wanda+barber" in out
    if form == "csv":
        assert len(list(csv.DictReader(io.StringIO(out)))) == 5
    else:
        assert "±" in out or r"$\pm$" in out
        assert "Best at 50 %" in out.replace("\N{NO-BREAK SPACE}", " ")
    assert main(["report", str(saved / "demo.json"), "--format", form, "--out", str(saved / "made")]) == 0
    assert (saved / "made").read_text()
    assert main(["report", str(saved / "none.json")]) == 2
    assert "none.json: holds no results" in capsys.readouterr().err
    assert main(["report", str(saved / "demo.json"), "--out", str(saved)]) == 2
    assert "can't write there" in capsys.readouterr().err


def test_pandas_reads_the_csv() -> None:
    import pandas

    frame = pandas.read_csv(io.StringIO(published(sample_rows(), "csv")))
    assert frame.groupby("method")["wikitext2 (128)"].count().to_dict() == {"dense": 1, "wanda": 4, "wanda+barber": 4}


@pytest.mark.skipif(LATEX is None, reason="needs a LaTeX compiler")
def test_latex_compiles(tmp_path: Path) -> None:
    body = published([*sample_rows(), row("my_method & 1{0}% #~^", "50 %", 20)], "latex")
    text = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + body + "\\end{document}\n"
    (tmp_path / "table.tex").write_text(text)
    subprocess.run([str(LATEX), "table.tex"], cwd=tmp_path, check=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (tmp_path / "table.pdf").stat().st_size > 1000


@pytest.mark.parametrize("lacking", [("jinja2",), ("jinja2", "matplotlib")])
def test_pages_without_their_packages_are_refused_beforehand(
    lacking: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what needs no page works."""
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name in lacking else object())
    for name in (*lacking, *(f"{name}.figure" for name in lacking)):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "grid.toml").write_text('models = ["demo"]\nmethods = ["wanda"]\ntargets = [0.5]\n')
    results = tmp_path / "log_x.json"
    results.write_text(dump_json(EvaluationRow("wanda", "50 %", 0.5, ())), encoding="utf-8")
    for words in (["bench", str(tmp_path / "grid.toml")], ["report", str(results), "--format", "html"]):
        assert main(words) == 2
        assert f"pip install {' '.join(lacking)}" in capsys.readouterr().err
    for form in ("md", "csv", "latex"):
        assert main(["report", str(results), "--format", form]) == 0
