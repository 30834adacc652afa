"""The tables: aligned, to sensible digits, and readable by programs in their other renderings."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from autoprune.report.grid import Grid, grid_to_latex, grid_to_markdown, grid_to_rich
from autoprune.report.html import render_html
from autoprune.report.views import barber_effect, texts_of, variants_of
from rich.console import Console
from test_report_samples import row, sample_rows, summary

from autoprune.report import numbers, tables
from autoprune.results.types import PruningSummary


def column_starts(text: str) -> list[int]:
    """Where the columns start, from the rule under the header."""
    return [m.start() for m in re.finditer("-+", text.splitlines()[1])]


def assert_aligned(text: str) -> None:
    """Two spaces stand between the columns in every line."""
    lines, starts = text.splitlines(), column_starts(text)
    assert len(lines) > 2
    for line in lines:
        for start in starts[1:]:
            assert line.ljust(start)[start - 2 : start] == "  ", line
        assert line == line.rstrip()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.2412, "4.241"),
        (9.99996, "10.00"),
        (18.0, "18.00"),
        (123.44, "123.4"),
        (2403.4, "2403"),
        (54321.0, "54321"),
        (1.23e6, "1.2e+06"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (0.0, "0.000"),
    ],
)
def test_perplexities_have_four_significant_digits(value: float, text: str) -> None:
    """Short forms for huge ones, words for what is no number."""
    assert numbers.perplexity_text(value) == text


def test_other_numbers() -> None:
    """Spread, shares, changes and errors."""
    assert numbers.perplexity_text(18.5, 0.70711) == "18.50 ± 0.71"
    assert numbers.perplexity_text(2e6, 1e5) == "2.0e+06 ± 1.0e+05"
    assert [numbers.share_text(s) for s in (0.0, 0.5, 0.00001)] == ["0.00 %", "50.00 %", "1.0e-03 %"]
    assert [numbers.change_text(r) for r in (0.9, 1.021, 12.0, float("nan"))] == ["-10.0 %", "+2.1 %", "x12", "nan"]
    assert numbers.change_text(0.968, 0.00123) == "-3.2 ± 0.1 %"
    assert [numbers.error_text(e) for e in (None, 0.12345, 1e-5, float("inf"))] == ["-", "0.1235", "1.00e-05", "inf"]


def test_the_log_is_exactly_this() -> None:
    """Golden: the text of ``log_<method>_<threshold>.txt``."""
    assert (
        tables.perplexity_log([row("wanda+barber", "50 %", 16.204)])
        == "method        target  actual sparsity  wikitext2 (128)\n"
        "------------  ------  ---------------  ---------------\n"
        "wanda+barber  50 %            50.00 %            16.20\n"
    )


def test_the_comparison_is_exactly_this() -> None:
    """Golden: means stand below each other, and LLM-Barber's effect beside its row."""
    assert (
        tables.comparison_table(sample_rows()) == "method        target  sparsity  wikitext2 (128)     LLM-Barber\n"
        "------------  ------  --------  ---------------  -------------\n"
        "dense         dense     0.00 %     4.241\n"
        "wanda         50 %     50.00 %     18.50 ± 0.71\n"
        "wanda+barber  50 %     50.00 %     16.65 ± 0.64  -10.0 ± 0.0 %\n"
        "wanda         2:4      50.00 %      2404 ± 1\n"
        "wanda+barber  2:4      50.00 %      2164 ± 1     -10.0 ± 0.0 %\n"
    )


def test_effect_is_that_of_each_seed_on_its_own_first_pass() -> None:
    """Seeds of different difficulty do not hide a change that is the same in all; a seed without a first pass does not
    count.
    """
    first = [row("wanda", "50 %", value, seed=seed) for seed, value in enumerate((10.0, 20.0))]
    after = [row("wanda+barber", "50 %", value, seed=seed) for seed, value in enumerate((9.0, 18.4, 77.0))]
    effect = barber_effect(variants_of([*first, *after])[1], variants_of([*first, *after]), texts_of(first))
    assert effect is not None
    assert (effect.mean, effect.sd, effect.count) == (pytest.approx(0.91), pytest.approx(0.01 * 2**0.5), 2)
    assert tables.comparison_table([*first, *after]).splitlines()[-1].endswith("-9.0 ± 1.4 %")


@pytest.mark.parametrize(
    "text",
    [
        tables.perplexity_log(sample_rows()),
        tables.perplexity_log(
            [row("dense", "dense", float("inf")), row("a-very-long-method", "50 %", 1e9, source="x" * 30)]
        ),
        tables.layer_table(summary()),
        tables.layer_table(summary(barber=True), per_layer=True),
        tables.layer_table(summary(error=None)),
        tables.barber_table(summary(barber=True)),
        tables.barber_table(summary(barber=True), per_layer=True),
    ],
)
def test_columns_are_aligned(text: str) -> None:
    """In all tables alike."""
    assert_aligned(text)


def test_missing_and_odd_values() -> None:
    """What was not measured is a dash; several seeds get a column; NaN and infinity are words."""
    rows = [row("wanda", "50 %", float("nan"), seed=0), row("wanda", "50 %", float("inf"), seed=1, source="ptb")]
    lines = [line.split() for line in tables.perplexity_log(rows).splitlines()]
    assert lines[2][-2:] == ["nan", "-"]
    assert lines[3][-2:] == ["-", "inf"]
    assert lines[0][2] == "seed"
    assert "nan" in tables.comparison_table(rows)
    assert tables.comparison_table([]).splitlines()[0].split() == ["method", "target", "sparsity"]


def test_layers_are_counted() -> None:
    """Zeros and sparsity per block, per layer and of all; the worst layer is named."""
    text = tables.layer_table(summary())
    assert text.splitlines()[2].split() == [
        "0",
        "3",
        "6,144",
        "3,072",
        "50.00",
        "%",
        "0.2000",
        "0.2000",
        "self_attn.q_proj",
    ]
    assert text.splitlines()[-1].split() == ["all", "12,288", "6,144", "50.00", "%"]
    assert len(tables.layer_table(summary(), per_layer=True).splitlines()) == 2 + 6 + 1


def test_barber_table_shows_exchange_loss_and_movement() -> None:
    """Movement only where sparsity moved; nothing at all where LLM-Barber did not run."""
    line = tables.barber_table(summary(barber=True)).splitlines()[2]
    assert line.split("  ")[0] == "0"
    for part in ("self_attn", "10.00 %", "2.000e-04", "1.000e-04", "-50.0 %", "q_proj +3.12 pp", "o_proj -3.12 pp"):
        assert part in line
    first = tables.barber_table(summary(barber=True), per_layer=True).splitlines()[2].split()
    assert first == ["0", "self_attn.q_proj", "19.53", "%", "40", "72", "50.00", "%", "53.12", "%", "+3.12", "pp"]
    assert tables.barber_table(summary()) == ""
    assert tables.layer_table(PruningSummary(())).splitlines()[-1].split()[0] == "all"


def test_markdown_parses_back() -> None:
    """Same number of cells in every line, the best of a target bold, bars in names escaped."""
    lines = grid_to_markdown(tables.comparison_grid(sample_rows())).splitlines()
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(c) for c in cells} == {5}
    assert len({len(line) for line in lines}) == 1
    assert all(re.fullmatch("-+", c) for c in cells[1][:2])
    assert all(re.fullmatch("-+:", c) for c in cells[1][2:])
    assert cells[4][3] == "**16.65 ± 0.64**"
    assert r"a\|b" in grid_to_markdown(tables.comparison_grid([row("a|b", "50 %", 3)]))


def test_bits_per_byte_beside_perplexity() -> None:
    """Where they are known: in a table of their own, in the lines for programs; not as if they belonged to the
    text.
    """
    rows = [
        replace(
            r,
            perplexity=(replace(r.perplexity[0], provenance={"bits_per_byte": 1.5 + i, "loss": 2.0, "documents": 7}),),
        )
        for i, r in enumerate(sample_rows()[:3])
    ]
    assert [line[2] for line in tables.bits_grid(rows).rows] == ["1.500", "2.500", "3.500"]
    assert next(csv.DictReader(io.StringIO(tables.to_csv(rows))))["wikitext2 (128) bits per byte"] == "1.5"
    assert tables.bits_grid(sample_rows()).rows == ()
    page = render_html(rows, title="x")
    assert "Bits per byte" in page
    assert "documents" in page
    assert "bits_per_byte" not in page


def test_csv_parses_back() -> None:
    """One line per row, numbers in full, odd words quoted."""
    rows = [*sample_rows(), row('odd, "name"', "50 %", float("inf"))]
    parsed = list(csv.DictReader(io.StringIO(tables.to_csv(rows))))
    assert len(parsed) == len(rows)
    for line, original in zip(parsed, rows, strict=True):
        assert line["method"] == original.method
        assert float(line["wikitext2 (128)"]) == original.perplexity[0].perplexity
        assert float(line["sparsity"]) == original.sparsity
    assert (parsed[0]["seed"], parsed[1]["seed"]) == ("", "0")


def test_latex_parses_back() -> None:
    """Balanced environment, the same number of cells in every line, special characters escaped."""
    text = grid_to_latex(tables.comparison_grid([*sample_rows(), row("my_method & 1{0}%", "50 %", 20)]))
    assert text.startswith(r"\begin{tabular}{llrrr}")
    assert text.endswith("\\end{tabular}\n")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {4}
    assert r"my\_method \& 1\{0\}\%" in text
    assert r"\textbf{16.65 $\pm$ 0.64}" in text
    assert not re.search(r"(?<!\\)%", text)


def test_numbers_stand_below_each_other_on_a_terminal() -> None:
    """Whatever stands behind them; and where there is little room, columns are left out rather than words torn
    apart.
    """
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    grid = Grid(("task", "acc"), (("a", "28.42 ± 1.89"), ("b", "3.10"), ("mean", "15.76 (of 2)")), words=1)
    console.print(grid_to_rich(grid))
    tables.print_barber(summary(barber=True), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    numbers = [line for line in lines if line.strip().split(" ")[0] in ("a", "b", "mean")]
    assert {line.index(".") for line in numbers} == {numbers[0].index(".")}
    assert not any("lost" in line for line in lines)
    assert any("self_attn" in line and "-50.0 %" in line for line in lines)


def test_terminal_tables() -> None:
    """Rich draws the same cells; names with brackets are no markup."""
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    tables.print_comparison([*sample_rows(), row("[bold]x", "50 %", 20)], console)
    tables.print_layers(summary(), console)
    tables.print_barber(summary(barber=True), console)
    tables.print_barber(summary(), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("[bold]x", "16.65 ± 0.64", "What was pruned", "by sub-block"):
        assert part in text
