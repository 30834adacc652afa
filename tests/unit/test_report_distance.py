"""How far predictions moved, as reports show it: seeds are averaged, distributions added up, flips counted."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from test_report_samples import row

from autoprune.core.divergence import TokenShifts, summarise
from autoprune.core.mcnemar import mcnemar
from autoprune.core.shift import PredictionShift
from autoprune.report.accuracy import accuracy_table
from autoprune.report.distance import distance_table, distributions, flips_table, places
from autoprune.report.distance_page import render_comparison
from autoprune.report.page import render_html
from autoprune.report.publish import published, published_comparison
from autoprune.report.tables import comparison
from autoprune.results.codec import dump_json, row_from_json
from autoprune.results.comparison import Comparison, Flips, ModelComparison
from autoprune.results.comparison_tables import comparison_tables
from autoprune.results.numbers import number_text
from autoprune.results.table import print_table
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow, TaskResult, ZeroShotResult


def shift(size: float) -> PredictionShift:
    """Of 4 windows of 128 tokens, with divergences about ``size``."""
    generator = torch.Generator().manual_seed(0)
    kld = size * torch.rand(4, 63, generator=generator)
    loss = torch.ones(4, 63)
    return summarise(TokenShifts(kld, loss, loss + size * torch.arange(63) / 63, kld < size / 2), 128)


def rows() -> list[EvaluationRow]:
    """Dense; wanda with two seeds, wanda+refit with one."""
    pruned = [
        replace(row("wanda", "50 %", 20 + seed, seed=seed), shifts={"wikitext2": shift(0.5 + 0.1 * seed)})
        for seed in (0, 1)
    ]
    better = replace(row("wanda+refit", "50 %", 18), shifts={"wikitext2": shift(0.2)})
    return [row("dense", "dense", 10, seed=None), *pruned, better]


def test_a_line_for_every_variant_and_text() -> None:
    table = distance_table(Results(rows()))
    (wanda, refit) = table.rows
    values = [s.kld.mean for r in rows()[1:3] for s in r.shifts.values()]
    mean, sd = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert wanda[:4] == ("wanda", "50 %", "wikitext2 (128)", f"{mean:.4f} ± {sd:.4f}")
    assert refit[3] == number_text(rows()[3].shifts["wikitext2"].kld.mean, digits=4)
    assert refit[table.header.index("same top")] == f"{100 * rows()[3].shifts['wikitext2'].same_top.mean:.2f} %"


def test_columns_beside_perplexity() -> None:
    """Only where it was measured."""
    table = comparison(Results(rows()))
    at = table.header.index("KL divergence, wikitext2 (128)")
    assert [line[at] != "-" for line in table.rows] == [False, True, True]
    assert not [head for head in comparison(Results([row("wanda", "50 %", 9)])).header if "divergence" in head]


def test_drawings() -> None:
    """One for the target: a row for each variant, all on one axis; seeds are counted together."""
    results = Results(rows())
    (drawn,) = distributions(results, results.texts[0])
    assert "wanda+refit" in drawn.svg
    areas = drawn.figure.axes[0].collections
    tokens = [bar.tokens for r in rows()[1:3] for bar in r.shifts["wikitext2"].bars]
    assert sum(tokens) == 2 * 4 * 63
    assert len(areas) == 4  # an outline and a median for each
    (by_place,) = places(results, results.texts[0])
    lines = [line for line in by_place.figure.axes[0].lines if len(line.get_xdata()) == 8]
    assert len(lines) == 2
    assert list(lines[0].get_ydata()) == sorted(lines[0].get_ydata())
    assert distributions(Results([row("wanda", "50 %", 9)]), results.texts[0]) == []
    assert places(Results([row("wanda", "50 %", 9)]), results.texts[0]) == []


def test_a_model_that_did_not_move() -> None:
    """All tokens in the first bar, which has no lower end on a logarithmic axis."""
    still = replace(row("wanda", "50 %", 9), shifts={"wikitext2": shift(0.0)})
    results = Results([still])
    assert len(distributions(results, results.texts[0])) == 1
    assert len(places(results, results.texts[0])) == 1


def test_the_page_has_a_part_for_it() -> None:
    page = render_html(rows(), title="x")
    assert "<h2>Distance from the dense model</h2>" in page
    assert "Distance from the dense model" not in render_html([row("wanda", "50 %", 9)], title="x")


def test_a_row_survives_json() -> None:
    import json

    for one in rows():
        assert row_from_json(json.loads(dump_json(one))) == one


def answered(base: EvaluationRow, chosen: str, correct: str, task: str = "boolq") -> EvaluationRow:
    """A row with the answers to a task."""
    metric = "acc"
    share = correct.count("1") / len(correct)
    result = TaskResult(task, "1", 0, len(chosen), {metric: share}, {}, {metric: correct}, {metric: chosen})
    return replace(base, zeroshot=ZeroShotResult((result,)))


def test_flips_from_rows() -> None:
    """Item by item: 0122 became 0202, of which one was right before and two are now."""
    dense = answered(row("dense", "dense", 10, seed=None), "0122", "1001")
    pruned = answered(row("wanda", "50 %", 20), "0202", "1110")
    (line,) = flips_table(Results([dense, pruned])).rows
    assert line[:4] == ("wanda", "50 %", "boolq", "acc")
    assert line[4:8] == ("4", "50.00 %", "25.00 %", "50.00 %")
    assert line[8] == f"{mcnemar(1, 2):.3g}"
    for form in ("md", "latex", "html"):
        assert "boolq" in published([dense, pruned], form)
        assert "answers changed" in published([dense, pruned], form)
    table = accuracy_table(Results([dense, pruned]), "acc")
    assert [line[table.header.index("answers changed")] for line in table.rows] == ["-", "50.0"]
    frame = Results([dense, pruned]).wide()
    assert frame["boolq acc changed"].tolist()[1] == 0.5
    assert "correct → wrong" in published([dense, pruned], "html")


@pytest.mark.parametrize("chosen", ["01", ""])
def test_no_flips_of_other_items(chosen: str) -> None:
    """As many answers on both sides, or none are compared."""
    dense = answered(row("dense", "dense", 10, seed=None), "0122", "1001")
    pruned = answered(row("wanda", "50 %", 20), chosen, chosen or "1001")
    assert flips_table(Results([dense, pruned])).rows == []


def test_the_page_of_a_comparison() -> None:
    """Distributions and all tables; one model may be called dense."""
    models = tuple(ModelComparison(name, {"wikitext2": shift(size)}) for name, size in (("dense", 0.1), ("half", 0.5)))
    flip = Flips("boolq", "acc", 10, 3, 2, 1, 1.0)
    about = {"parameters": 1234, "dtype": "float32", "device": "cpu", "date": "2026-11-25T20:00:00+00:00"}
    measured = {"windows": {"wikitext2": {"windows": 4}}, "about": {**about, "versions": {"torch": "2.13"}}}
    found = Comparison("the big one", (*models, ModelComparison("only asked", {}, (flip,))), {"measured": measured})
    page = render_comparison(found)
    assert page == render_comparison(found)
    assert page.count("<div>Loss by place in the window, wikitext2 (128)</div>") == 1  # not one for each model
    assert "<h1>My words</h1>" in published_comparison(found, "html", title="My words")
    for words in ("Distance from the big one", "dense (compared)", "half", "Divergence of single tokens of wikitext2"):
        assert words in page
    for fact in ("the big one, 1,234 parameters, float32", "wikitext2: 4 windows", "cpu", "2026-11-25", "torch 2.13"):
        assert f"<dd>{fact}</dd>" in page
    assert "only asked" in page
    assert "boolq" in page
    assert "<svg" not in render_comparison(Comparison("d", (ModelComparison("only asked", {}, (flip,)),), {}))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_of_a_comparison_breaks_on_a_narrow_terminal(width: int) -> None:
    """What there is no room for is named; where all is of one text, the title names it."""
    names = ("wanda+barber (output1 0.01) 2:4", "half")
    flip = Flips("arc_challenge", "acc_norm", 1000, 300, 200, 100, 0.0123)
    models = tuple(ModelComparison(name, {"wikitext2": shift(0.3)}, (flip,)) for name in names)
    for table in comparison_tables(Comparison("dense", models)):
        console = Console(width=width, file=io.StringIO(), markup=False)
        print_table(table, console)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        rule = next(i for i, line in enumerate(lines) if "───" in line)
        body = [line for line in lines[rule + 1 :] if line.strip()]
        end = next((i for i, line in enumerate(body) if line.startswith("no room for")), len(body))
        assert end == len(names)
        cut = [word.strip("…") for line in body for word in line.split() if "…" in word]
        assert all(word in names[0] or word in flip.task for word in cut)
        assert all((column.short or column.head) in " ".join(lines[2:]) for column in table.columns)
        assert "wikitext2 (128)" in lines[1] or table.title.startswith("Answers")
