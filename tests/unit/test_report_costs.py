"""Time, memory and zero-shot accuracy in the reports."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from test_report_html import parse, titles
from test_report_samples import row, sample_rows

from autoprune.report.accuracy import Difference, accuracy_table, difference_table
from autoprune.report.charts import frontier, pareto
from autoprune.report.page import render_html
from autoprune.report.tables import cost_table
from autoprune.results.tidy import Results
from autoprune.results.types import Cost, Evaluation, EvaluationRow, TaskResult, ZeroShotResult

SECONDS = {"wanda": 2.0, "wanda+barber": 5.0}


def timed(rows: list[EvaluationRow]) -> list[EvaluationRow]:
    """The rows with seconds and bytes; the second seed takes one second more."""
    done = []
    for r in rows:
        seed = (r.settings.get("calibration") or {}).get("seed", 0)
        cost = Cost(20.0 + seed, (300 + seed) * 2**20)
        pruning = r.pruning and replace(r.pruning, seconds={"check": 0.5, "prune": SECONDS[r.method] - 0.5 + seed})
        done.append(replace(r, cost=cost, pruning=pruning))
    return done


def answered(row: EvaluationRow, *words: str) -> EvaluationRow:
    """The row with these answers to task a, b, …"""
    tasks = []
    for name, word in zip("ab", words, strict=False):
        rate = word.count("1") / len(word)
        error = math.sqrt(rate * (1 - rate) / (len(word) - 1))
        tasks.append(TaskResult(name, "1", 0, len(word), {"acc": rate}, {"acc": error}, {"acc": word}))
    return replace(row, zeroshot=ZeroShotResult(tuple(tasks), {}))


def test_cost_table() -> None:
    """Mean and spread of the seconds, the largest memory; no column for what was not measured."""
    grid = cost_table(Results(timed(sample_rows())))
    assert grid.header == ("method", "target", "pruning, s", "whole run, s", "peak memory, MiB")
    assert grid.rows[0] == ("dense", "dense", "-", "20.0", "300")
    assert grid.rows[2] == ("wanda+barber", "50 %", "5.50 ± 0.71", "20.5 ± 0.7", "301")
    assert cost_table(Results(sample_rows())).header == ("method", "target")


def test_frontier() -> None:
    """What is both slower and worse is not on it."""
    assert frontier([(3, 5), (1, 9), (2, 9), (2, 7), (4, 6)]) == [(1, 9), (2, 7), (3, 5)]


def test_one_picture_of_time_per_target() -> None:
    rows = timed(sample_rows())
    results = Results(rows)
    drawings = pareto(results, results.texts[0])
    assert [d.title for d in drawings] == [
        f"Perplexity on wikitext2 (128) against time at {target}" for target in ("50 %", "2:4")
    ]
    first, second = (drawing.figure.axes[0] for drawing in drawings)
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert pareto(Results(sample_rows()), results.texts[0]) == []
    page = render_html(rows, title="x")
    parse(page)
    assert "Perplexity against time" in titles(page)


def test_paired_differences_by_hand() -> None:
    """Against the dense model and against the first pass; seeds are averaged sample by sample."""
    rows = [
        answered(row("dense", "dense", 4, seed=None), "11110000"),
        answered(row("wanda", "50 %", 9, seed=0), "11000000"),
        answered(row("wanda", "50 %", 9, seed=1), "11100000"),
        answered(row("wanda+barber", "50 %", 8, seed=0), "11100000"),
    ]
    grid = difference_table(Results(rows), "acc")
    assert [r[:3] for r in grid.rows] == [
        ("wanda", "50 %", "dense"),
        ("wanda+barber", "50 %", "dense"),
        ("wanda+barber", "50 %", "wanda"),
    ]
    apart = [0, 0, -0.5, -1, 0, 0, 0, 0]  # wanda's mean over its seeds, minus dense
    mean = sum(apart) / 8
    error = math.sqrt(sum((a - mean) ** 2 for a in apart) / 7 / 8)
    assert grid.rows[0][4] == f"{100 * mean:+.1f} ± {100 * error:.1f}"
    assert Difference(0.2, 0.1).clear
    assert not Difference(-0.19, 0.1).clear


def test_difference_needs_the_same_samples() -> None:
    rows = [
        answered(row("dense", "dense", 4, seed=None), "1100", "11"),
        answered(row("wanda", "50 %", 9), "1000", "101"),
    ]
    grid = difference_table(Results(rows), "acc")
    assert grid.rows[0][3:] == ("-", "-25.0 ± 25.0", "-")


def test_accuracies_and_their_mean() -> None:
    rows = [
        answered(row("dense", "dense", 4, seed=None), "1100", "1111"),
        answered(row("wanda", "50 %", 9), "1000", "1100"),
    ]
    grid = accuracy_table(Results(rows), "acc")
    assert grid.header == ("method", "target", "mean acc of 2", "a", "b")
    assert grid.rows[1] == ("wanda", "50 %", "37.5", "25.0 ± 25.0", "50.0 ± 28.9")
    page = render_html(rows, title="x")
    parse(page)
    assert "Zero-shot accuracy" in titles(page)
    assert "Paired differences in acc" in page


def test_several_models_have_sections_of_their_own() -> None:
    """Neither means nor dense lines are mixed."""
    kinds = (("dense", "dense"), ("wanda", "50 %"))
    rows = [
        row(method, target, value, model={"model": name})
        for name, value in (("a", 4.0), ("b", 9.0))
        for method, target in kinds
    ]
    found = titles(render_html(rows, title="x"))
    assert [title for title in found if "Results" in title] == ["a: Results", "b: Results"]


def test_frames() -> None:
    pytest.importorskip("pandas")
    rows = timed(sample_rows())
    frame = Results([answered(rows[0], "10"), *rows[1:]]).wide()
    measured = ["wikitext2 (128)", "a acc", "a acc stderr", "prune_seconds", "seconds", "peak_bytes"]
    assert list(frame.columns) == ["model", "method", "settings", "target", "seed", "sparsity", *measured]
    assert frame.groupby("method")["wikitext2 (128)"].count().to_dict() == {"dense": 1, "wanda": 4, "wanda+barber": 4}
    assert rows[2].pruning is not None
    layers = rows[2].pruning.to_pandas()
    assert list(layers.block.unique()) == [0, 1]
    assert (layers.grown == 40).all()
    found = Evaluation(rows[0].perplexity)
    assert list(found.to_pandas().perplexity) == [4.2412]
    assert found.perplexity == {"wikitext2": 4.2412}
    assert (list(found), len(found), found[0]) == (list(rows[0].perplexity), 1, rows[0].perplexity[0])
    assert repr(found) == "Evaluation: perplexity\n  wikitext2: 4.241"
    assert "<table" in found._repr_html_()
