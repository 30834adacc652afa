"""The HTML report: one well-formed file that loads nothing, says only what there is data for, and is the same every
time.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from test_report_samples import row, sample_rows, summary

from autoprune.report.page import render_html
from autoprune.results.types import EvaluationRow, PruningSummary

SVG = "{http://www.w3.org/2000/svg}"


def parse(page: str) -> ET.Element:
    """The page as XML, which it is on purpose."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>"))


def titles(page: str) -> list[str]:
    """Titles of the sections."""
    return ["".join(h.itertext()) for h in parse(page).iter("h2")]


@pytest.fixture(scope="module")
def page() -> str:
    """The report of the sample rows."""
    return render_html(sample_rows(), title="Demo", subtitle="two seeds", command="autoprune prune --x '<a> & b'")


def test_well_formed_and_self_contained(page: str) -> None:
    """No script, nothing loaded, no address but the name of the SVG language; links lead inside."""
    root = parse(page)
    assert not list(root.iter("script")) + list(root.iter("link")) + list(root.iter("img")) + list(root.iter("iframe"))
    assert set(re.findall(r"https?://[^\"' <)]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert name not in ("href", "src") or value.startswith("#")
    assert all(not target.startswith(("http", "//", "data")) for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_same_rows_give_the_same_bytes(page: str) -> None:
    """No date, no random ids."""
    assert page == render_html(
        sample_rows(), title="Demo", subtitle="two seeds", command="autoprune prune --x '<a> & b'"
    )


def test_ids_do_not_clash_and_references_resolve(page: str) -> None:
    """Several drawings share the page's one space of ids."""
    ids = [e.attrib["id"] for e in parse(page).iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids)) > 0
    references = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page)
    assert references
    assert set(references) <= set(ids)


def test_drawings_are_titled_and_follow_the_page(page: str) -> None:
    """A title for screen readers, a caption, colours from CSS variables that exist in light and dark."""
    root = parse(page)
    drawings = list(root.iter(f"{SVG}svg"))
    assert len(drawings) >= 6
    for drawing in drawings:
        assert drawing.attrib["role"] == "img"
        title = drawing.find(f"{SVG}title")
        assert title is not None
        assert title.text
        assert "width" not in drawing.attrib
    assert all(figure.find("figcaption") is not None for figure in root.iter("figure"))
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
    assert "prefers-color-scheme: dark" in page
    used, known = set(re.findall(r"var\((--\w+)\)", svg)), set(re.findall(r"(--\w+):", page))
    assert used
    assert used <= known


def test_all_sections_when_all_is_known() -> None:
    """The curve needs two levels of sparsity."""
    rows = [*sample_rows(), *(row(m, "70 %", 90, sparsity=0.7) for m in ("wanda", "wanda+barber"))]
    assert rows[1].pruning is not None
    rows[1] = replace(rows[1], pruning=replace(rows[1].pruning, warnings=("damping was raised",)))
    expected = [
        "Results",
        "Perplexity against sparsity",
        "Layers",
        "What was exchanged",
        "Warnings",
        "How it was measured",
    ]
    assert titles(render_html(rows, title="x")) == expected


def test_sections_without_data_are_left_out() -> None:
    """Dense alone; a first pass alone; layers whose error was not measured; nothing at all."""
    assert titles(render_html([row("dense", "dense", 4)], title="x")) == ["Results", "How it was measured"]
    assert titles(render_html([row("wanda", "50 %", 4)], title="x")) == ["Results", "Layers", "How it was measured"]
    bare = EvaluationRow("magnitude", "50 %", 0.5, (), {}, summary(error=None))
    page = render_html([bare], title="x")
    assert titles(page) == ["Results", "Layers"]
    assert "<svg" not in page
    assert titles(render_html([replace(bare, pruning=PruningSummary(()))], title="x")) == ["Results"]
    assert "No results" in render_html([], title="x")


def test_words_of_the_user_are_escaped() -> None:
    """In the head, in tables and inside drawings."""
    evil = "<script>alert('&')</script>"
    page = render_html(
        [row(evil, "50 %", 9, source=f"{evil}.txt", note=evil), row("dense", "dense", 4, source=f"{evil}.txt")],
        title=evil,
        subtitle=evil,
        command=evil,
    )
    parse(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_words_are_no_mathematics() -> None:
    """Dollar signs and underscores in names stay what they are."""
    page = render_html(
        [row("$a_b$", "50 %", 9, source="c$x_1$"), row("dense", "dense", 4, source="c$x_1$")], title="x"
    )
    drawn = ["".join(t.itertext()) for t in parse(page).iter(f"{SVG}text")]
    assert "$a_b$" in drawn
    assert "perplexity on c$x_1$ (128)" in drawn


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_perplexity_that_is_no_number_is_a_word(value: float) -> None:
    """In the table and at the bar, beside others and alone."""
    rows = [row("dense", "dense", 4.0), row("wanda", "50 %", 9.0), row("magnitude", "50 %", value)]
    root = parse(render_html(rows, title="x"))
    assert str(value) in ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    assert str(value) in ["".join(t.itertext()).strip() for t in root.iter("td")]
    assert str(value) in ["".join(t.itertext()).strip() for t in parse(render_html([rows[2]], title="x")).iter("td")]


def test_wide_ranges_and_many_blocks() -> None:
    """A logarithmic axis, and a key instead of numbers in the tiles."""
    many = replace(row("wanda+barber", "50 %", 5e5), pruning=summary(barber=True, blocks=24))
    page = render_html([row("dense", "dense", 4.0), many], title="x")
    drawn = ["".join(t.itertext()) for t in parse(page).iter(f"{SVG}text")]
    assert "perplexity on wikitext2 (128), log scale" in drawn
    assert "5.0e+05" in drawn
    assert "4.80" in drawn  # the largest error, in the key


def test_losses_that_are_zero_or_odd_are_left_out_of_the_drawing() -> None:
    """A logarithmic axis has no zero; the report is made all the same."""
    before = summary(barber=True)
    subs = tuple(
        replace(s, loss_before=0.0, loss_after=float("nan"), exchanged=0, compared=0) for s in before.sub_blocks
    )
    page = render_html([replace(row("wanda+barber", "50 %", 9), pruning=replace(before, sub_blocks=subs))], title="x")
    assert "What was exchanged" in titles(page)
