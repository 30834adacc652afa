"""Results of earlier runs: read from any file that holds some, set beside each other, and judged in words."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_report_distance import answered, shift
from test_report_samples import row, sample_rows, summary

from autoprune.cli.main import main
from autoprune.errors import DataError
from autoprune.report import needs
from autoprune.report.accuracy import accuracy_findings, accuracy_table
from autoprune.report.publish import FORMATS, published
from autoprune.report.significance import findings, paired, two_sided
from autoprune.results.codec import dump_json, from_jsonable, read_rows, row_from_json
from autoprune.results.comparison import Comparison, Flips, ModelComparison
from autoprune.results.tidy import Results
from autoprune.results.types import About, Cost, EvaluationRow, ZeroShotResult

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
        assert "Best at 50 %" in out.replace("\N{NO-BREAK SPACE}", " ").replace("\\%", "%")
    assert main(["report", str(saved / "demo.json"), "--format", form, "--out", str(saved / "made")]) == 0
    assert (saved / "made").read_text()
    assert main(["report", str(saved / "none.json")]) == 2
    assert "none.json: holds no results" in capsys.readouterr().err
    assert main(["report", str(saved / "demo.json"), "--out", str(saved)]) == 2
    assert "can't write there" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_a_comparison(saved: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """What `autoprune compare --save` wrote, by itself."""
    flip = Flips("a_task", "acc", 10, 3, 2, 1, 1.0)
    models = (
        ModelComparison("half_one", {"some text": shift(0.5)}, (flip,)),
        ModelComparison("other", {"some text": shift(0.1)}),
    )
    settings = {"measured": {"windows": {"some text": {"windows": 4, "seqlen": 128}}}}
    (saved / "comparison.json").write_text(dump_json(Comparison("big", models, settings)))
    assert main(["report", str(saved), "--format", form]) == 0
    out = capsys.readouterr().out
    assert ("half\\_one" if form == "latex" else "half_one") in out
    if form == "csv":
        assert [float(line["kld"]) for line in csv.DictReader(io.StringIO(out))] == [
            shift(s).kld.mean for s in (0.5, 0.1)
        ]
    else:
        assert "a\\_task" in out if form == "latex" else "a_task" in out
        assert "4 windows" in out
    assert main(["report", str(saved), str(saved / "demo.json"), "--format", form]) == 2
    assert "comparison.json: a comparison is shown by itself" in capsys.readouterr().err
    shutil.copy(saved / "comparison.json", saved / "bench")  # other results of a directory go before it
    assert main(["report", str(saved / "bench"), "--format", form]) == 0
    assert "half_one" not in capsys.readouterr().out.replace("\\_", "_")
    (saved / "comparison.json").write_text('{"dense": "a", "models": [1], "settings": {}}')
    assert main(["report", str(saved)]) == 2
    assert "this comparison can't be read" in capsys.readouterr().err


def test_pandas_reads_the_csv() -> None:
    import pandas

    frame = pandas.read_csv(io.StringIO(published(sample_rows(), "csv")))
    assert frame.groupby("method")["wikitext2 (128)"].count().to_dict() == {"dense": 1, "wanda": 4, "wanda+barber": 4}


def whole_rows() -> list[EvaluationRow]:
    """With all that a table can hold, and names that every format has to escape."""
    dense = answered(row("dense", "dense", 10, seed=None, model="some_owner/a_model"), "0122" * 9, "1001" * 9)
    pruned = [
        answered(row(name, "50 %", value, model="some_owner/a_model"), chosen, right)
        for name, value, chosen, right in (
            ("wanda & 1{0}% #~^ <b>*x*", 20, "0202" * 9, "1110" * 9),
            ("_refit_", 1234.5, "0122" * 9, "1000" * 9),
        )
    ]
    return [dense, *(replace(r, shifts={"wikitext2": shift(0.1 * i)}) for i, r in enumerate(pruned, start=1))]


@pytest.mark.skipif(LATEX is None, reason="needs a LaTeX compiler")
@pytest.mark.parametrize("package", ["", "\\usepackage{graphicx}"], ids=["plain", "graphicx"])
def test_latex_compiles(tmp_path: Path, package: str) -> None:
    """Without any package, and with one that makes wide tables narrower."""
    rows = [*sample_rows(), *whole_rows()]
    body = published(rows, "latex")
    text = f"\\documentclass{{article}}{package}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    command = [str(LATEX), "-halt-on-error", "table.tex"] if "pdflatex" in str(LATEX) else [str(LATEX), "table.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_no_letter_that_latex_lacks() -> None:
    """What is left of a language's own letters is in names that people chose."""
    assert published(whole_rows(), "latex").isascii()


def test_captions_say_what_was_measured_on_what() -> None:
    text = published(whole_rows(), "md")
    assert "Model: some\\_owner/a\\_model." not in text  # letters on both sides need no mark
    assert "Model: some_owner/a_model." in text
    assert "Text: wikitext2, 10 windows of 128 tokens." in text
    assert "Tasks: boolq, 36 items, 0 examples before each." in text
    assert "± is the standard deviation over 2 seeds" in published(sample_rows(), "md")
    rows = [row("wanda", "50 %", 9 + s, seed=s, calibration_data="/a/b/c4.txt", seqlen=64) for s in (0, 1)]
    assert "Calibration: c4.txt, 8 windows of 64 tokens, seeds 0, 1." in published(rows, "latex")


def test_markdown_shows_names_as_they_are() -> None:
    """As a renderer of it does."""
    renderer = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    page = renderer.render(published(whole_rows(), "md"))
    assert "<td>wanda &amp; 1{0}% #~^ &lt;b&gt;*x*</td>" in page.replace(' style="text-align:left"', "")
    assert "<td>_refit_</td>" in page
    assert "<strong>20.00</strong>" in page
    assert "<em>" not in page and "\\" not in page


def test_the_best_is_stressed_and_judged_by_its_items() -> None:
    """27 of 36 items are right, 9 of them beside 18 that the dense model has."""
    table = accuracy_table(Results(whole_rows()), "acc")
    assert [sorted(column.strong) for column in table.columns if column.head in ("boolq", "mean acc of 1")] == [
        [1],
        [1],
    ]
    (said,) = accuracy_findings(Results(whole_rows()))
    assert said.startswith("Most often right at 50 % by acc, mean of 1 task: wanda & 1{0}% #~^ <b>*x*, 75.0 %.")
    assert "The dense model is lower by 25.0 ± 14.0 points on the same items, which may be chance" in said
    assert "(paired z-test, p = 0.07" in said
    assert (
        "Next, _refit_, is lower by 50.0 ± 8.5 points on the same items, a clear difference (paired z-test, p < 0.001)"
        in said
    )
    other = whole_rows()
    assert other[2].zeroshot is not None
    (task,) = other[2].zeroshot.tasks
    other[2] = replace(other[2], zeroshot=ZeroShotResult((replace(task, items="others"),)))
    assert "Next" not in next(accuracy_findings(Results(other)))


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
    for words in (
        ["bench", str(tmp_path / "grid.toml")],
        ["report", str(results), "--format", "html"],
        ["compare", "demo", "demo", "--save", str(tmp_path / "saved")],
    ):
        assert main(words) == 2
        assert f"pip install {' '.join(lacking)}" in capsys.readouterr().err
    for form in ("md", "csv", "latex"):
        assert main(["report", str(results), "--format", form]) == 0


def test_captions_of_rows_that_differ() -> None:
    """Windows from the least to the most; calibration of what read some; decimals as in the table."""
    one, other = row("wanda", "50 %", 123.456), row("magnitude", "50 %", 150.0)
    few = replace(one.perplexity[0], windows=one.perplexity[0].windows + 3)
    read = {"calibration_data": "c4.txt", "nsamples": 8, "seqlen": 64}
    unread = {"calibration_data": "ptb", "nsamples": 128, "seqlen": 64}
    blind = replace(other, settings={**other.settings, **unread}, pruning=summary(error=None))
    found = [replace(one, perplexity=(few,), settings={**one.settings, **read}), blind]
    said = published(found, "md")
    assert f"{few.windows - 3:,} to {few.windows:,} windows of {few.seqlen} tokens" in said
    assert "Calibration: c4.txt, 8 windows" in said
    assert "Calibration is not the same" not in said
    assert "Best at 50 % on wikitext2 (128): wanda, 123.46." in said
    blind_only = published([blind], "md")
    assert "Calibration" not in blind_only
