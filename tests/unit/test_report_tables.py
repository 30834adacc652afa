"""The tables: aligned, to sensible digits, and readable by programs in their other renderings."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from test_report_samples import row, sample_rows, summary

from autoprune.report.layers import exchange_table, exchange_totals, layer_table
from autoprune.report.page import render_html
from autoprune.report.tables import bits_table, comparison, perplexity_log
from autoprune.results import numbers
from autoprune.results.latex import to_latex
from autoprune.results.table import Table, from_rows, print_table, to_markdown, to_text
from autoprune.results.tidy import Results
from autoprune.results.types import Cost, EvaluationRow, PruningSummary
from autoprune.results.variants import Spread


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
    assert numbers.number_text(value) == text


def test_other_numbers() -> None:
    """Spread, shares, changes and errors."""
    assert numbers.number_text(18.5, 0.70711) == "18.50 ± 0.71"
    assert numbers.number_text(2e6, 1e5) == "2.0e+06 ± 1.0e+05"
    assert [numbers.share_text(s) for s in (0.0, 0.5, 0.00001)] == ["0.00 %", "50.00 %", "1.0e-03 %"]
    assert [numbers.change_text(r) for r in (0.9, 1.021, 12.0, float("nan"))] == ["-10.0 %", "+2.1 %", "x12", "nan"]
    assert numbers.change_text(Spread(0.968, 0.00123, 2)) == "-3.2 ± 0.1 %"
    assert numbers.column_texts([Spread(4.2412), Spread(18.5, 0.70711, 2), None]) == ("4.24", "18.50 ± 0.71", "-")
    assert numbers.column_texts([Spread(4.2412), Spread(9.0)]) == ("4.241", "9.000")
    assert [numbers.error_text(e) for e in (None, 0.12345, 1e-5, float("inf"))] == ["-", "0.1235", "1.00e-05", "inf"]


def test_the_log_is_exactly_this() -> None:
    """Golden: the text of ``log_<method>_<target>.txt``."""
    assert (
        perplexity_log([row("wanda+barber", "50 %", 16.204)])
        == "method        target  actual sparsity  wikitext2 (128)\n"
        "------------  ------  ---------------  ---------------\n"
        "wanda+barber  50 %            50.00 %            16.20\n"
    )


def test_the_comparison_is_exactly_this() -> None:
    """Golden: means stand below each other with the same digits, changes beside them."""
    assert (
        to_text(comparison(Results(sample_rows())))
        == "method        target  sparsity  perplexity, wikitext2 (128 tokens)         vs dense  change by barber\n"
        "------------  ------  --------  ----------------------------------  ---------------  ----------------\n"
        "dense         dense     0.00 %                         4.24\n"
        "wanda         50 %     50.00 %                        18.50 ± 0.71  +336.2 ± 16.7 %\n"
        "wanda+barber  50 %     50.00 %                        16.65 ± 0.64  +292.6 ± 15.0 %     -10.0 ± 0.0 %\n"
        "wanda         2:4      50.00 %                      2403.90 ± 0.71    x567\n"
        "wanda+barber  2:4      50.00 %                      2163.51 ± 0.64    x510              -10.0 ± 0.0 %\n"
    )


def test_a_run_beside_the_dense_model_and_its_first_step() -> None:
    """What `prune` prints: changes, time and peak memory."""
    rows = [
        row("dense", "dense", 10, seed=None),
        row("wanda", "50 %", 15),
        row("wanda+barber (block 0.1)", "50 %", 12),
    ]
    assert rows[2].pruning is not None
    timed = replace(rows[2].pruning, seconds={"prune": 3.0})
    rows[2] = replace(rows[2], pruning=timed, cost=Cost(4.0, 2**30))
    table = comparison(Results(rows))
    assert table.header[4:] == ("vs dense", "change by barber", "pruning, s", "peak memory, MiB")
    assert table.rows[2][4:] == ("+20.0 %", "-20.0 %", "3.00", "1,024")
    assert table.rows[0][4:] == ("", "", "-", "-")


def test_effect_is_that_of_each_seed_on_its_own_first_step() -> None:
    """Seeds of different difficulty do not hide a change that is the same in all; a seed without a first step does not
    count.
    """
    first = [row("wanda", "50 %", value, seed=seed) for seed, value in enumerate((10.0, 20.0))]
    after = [row("wanda+barber", "50 %", value, seed=seed) for seed, value in enumerate((9.0, 18.4, 77.0))]
    results = Results([*first, *after])
    effect = results.change(results.variants[1], results.before(results.variants[1]))
    assert effect is not None
    assert (effect.mean, effect.sd, effect.count) == (pytest.approx(0.91), pytest.approx(0.01 * 2**0.5), 2)
    assert comparison(results).rows[-1][-1] == "-9.0 ± 1.4 %"


@pytest.mark.parametrize(
    "text",
    [
        perplexity_log(sample_rows()),
        perplexity_log([row("dense", "dense", float("inf")), row("a-very-long-method", "50 %", 1e9, source="x" * 30)]),
        to_text(layer_table(summary())),
        to_text(layer_table(summary(barber=True), per_layer=True)),
        to_text(layer_table(summary(error=None))),
        to_text(exchange_table(summary(barber=True))),
        to_text(exchange_table(summary(barber=True), per_layer=True)),
        to_text(exchange_totals(Results(sample_rows()))),
    ],
)
def test_columns_are_aligned(text: str) -> None:
    """In all tables alike."""
    assert_aligned(text)


def test_missing_and_odd_values() -> None:
    """What was not measured is a dash; several seeds get a column; NaN and infinity are words."""
    rows = [row("wanda", "50 %", float("nan"), seed=0), row("wanda", "50 %", float("inf"), seed=1, source="ptb")]
    lines = [line.split() for line in perplexity_log(rows).splitlines()]
    assert lines[2][-2:] == ["nan", "-"]
    assert lines[3][-2:] == ["-", "inf"]
    assert lines[0][2] == "seed"
    assert "nan" in to_text(comparison(Results(rows)))
    assert comparison(Results([])).header == ("method", "target")


def test_layers_are_counted() -> None:
    """Zeros and sparsity per block, per layer and of all; the worst layer is named."""
    table = layer_table(summary())
    assert table.rows[0] == ("0", "3", "6,144", "3,072", "50.00 %", "0.2000", "0.2000", "self_attn.q_proj")
    assert table.rows[-1] == ("all", "", "12,288", "6,144", "50.00 %", "", "", "")
    assert len(layer_table(summary(), per_layer=True).rows) == 6 + 1
    assert layer_table(PruningSummary(())).rows[-1][0] == "all"


def test_exchange_table_shows_pairs_loss_and_movement() -> None:
    """Movement only where sparsity moved; no lines where nothing was exchanged."""
    moved = ("q_proj +3.12 pp", "o_proj -3.12 pp")
    line = exchange_table(summary(barber=True)).rows[0]
    assert line == ("0", "self_attn", "10.00 %", "10", "2.000e-04", "1.000e-04", "-50.0 %", *moved)
    first = exchange_table(summary(barber=True), per_layer=True).rows[0]
    assert first == ("0", "self_attn.q_proj", "19.53 %", "40", "72", "50.00 %", "53.12 %", "+3.12 pp")
    assert exchange_table(summary()).rows == []
    total = exchange_totals(Results(sample_rows())).rows[0]
    assert total == ("wanda+barber", "50 %", "10.00 %", "40", "8.000e-04", "4.000e-04", "-50.0 %")


def test_markdown_parses_back() -> None:
    """Same number of cells in every line, the best of a target bold, bars in names escaped."""
    lines = to_markdown(comparison(Results(sample_rows()))).splitlines()
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(c) for c in cells} == {6}
    assert len({len(line) for line in lines}) == 1
    assert all(re.fullmatch("-+", c) for c in cells[1][:2])
    assert all(re.fullmatch("-+:", c) for c in cells[1][2:])
    assert cells[4][3] == "**16.65 ± 0.64**"
    assert r"a\|b, \*.mlp, __x__, a_b".replace("__", r"\_\_") in to_markdown(
        comparison(Results([row("a|b, *.mlp, __x__, a_b", "50 %", 3)]))
    )
    assert r"a\|b" in to_markdown(comparison(Results([row("a|b", "50 %", 3)])))


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
    assert [line[2] for line in bits_table(Results(rows)).rows] == ["1.500", "2.500", "3.500"]
    assert (
        next(csv.DictReader(io.StringIO(Results(rows).wide().to_csv(index=False))))["wikitext2 (128) bits per byte"]
        == "1.5"
    )
    assert bits_table(Results(sample_rows())).rows == []
    page = render_html(rows, title="x")
    assert "Bits per byte" in page
    assert "documents" in page
    assert "bits_per_byte" not in page


def test_csv_parses_back() -> None:
    """One line per row, numbers in full, odd words quoted."""
    rows = [*sample_rows(), row('odd, "name"', "50 %", float("inf"))]
    parsed = list(csv.DictReader(io.StringIO(Results(rows).wide().to_csv(index=False))))
    assert len(parsed) == len(rows)
    for line, original in zip(parsed, rows, strict=True):
        assert line["method"] == original.method
        assert float(line["wikitext2 (128)"]) == original.perplexity[0].perplexity
        assert float(line["sparsity"]) == original.sparsity
    assert (parsed[0]["seed"], parsed[1]["seed"]) == ("", "0")


def test_latex_parses_back() -> None:
    """Balanced environment, the same number of cells in every line, special characters escaped."""
    text = to_latex(comparison(Results([*sample_rows(), row("my_method & 1{0}%", "50 %", 20)])))
    assert text.startswith(r"\begin{tabular}{llrr@{}lr@{}lr}")
    assert text.endswith("\\end{tabular}\n")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body[1:]} == {7}
    assert len(re.findall(r"(?<!\\)&", body[0])) + body[0].count("multicolumn") == 7
    assert r"my\_method \& 1\{0\}\%" in text
    assert r"\textbf{16} & \textbf{.65 $\pm$ 0.64}" in text
    assert not re.search(r"(?<!\\)%", text)


def test_latex_numbers_meet_at_the_point() -> None:
    """Whatever their digits; equal digits need no second column, and a hyphen is no minus."""
    cells = [("a", "0.0312", "-10.0 %", "-"), ("b", "1.5e-06", "+5.0 %", "1,024"), ("c", "812", "-", "9")]
    text = to_latex(Table(from_rows(["x", "kld", "change", "peak"], cells)), "Of a_b")
    assert r"\begin{tabular}{lr@{}lrr}" in text
    assert r"a & 0 & .0312 & $-$10.0\,\% & --" in text
    assert r"b & 1 & .5$\cdot10^{-6}$ & +5.0\,\% & 1,024" in text
    assert r"c & 812 &  & -- & 9" in text
    assert r"\caption{Of a\_b}" in text and text.startswith(r"\begin{table}")


def shown(table: Table, width: int) -> list[str]:
    """The lines that a terminal of this width shows."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False, markup=False)
    print_table(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_numbers_stand_below_each_other_on_a_terminal() -> None:
    """Whatever stands behind them."""
    cells = [("a", "28.42 ± 1.89"), ("b", "3.10"), ("mean", "15.76 (of 2)")]
    lines = shown(Table(from_rows(["task", "acc"], cells)), 80)
    numbers = [line for line in lines if line.strip().split(" ")[0] in ("a", "b", "mean")]
    assert {line.index(".") for line in numbers} == {numbers[0].index(".")}


def wide_rows() -> list[EvaluationRow]:
    """Long names and every column, as in README's larger table."""
    rows = [row("dense", "dense", 15.78, seed=None)]
    for method in ("sparsegpt", "sparsegpt+barber (output1 0.1, retain reconstruction)"):
        for seed in (0, 1):
            made = row(method, "2:4", 18.82 + seed, seed=seed)
            assert made.pruning is not None
            timed = replace(made.pruning, seconds={"prune": 12.5})
            rows.append(replace(made, pruning=timed, cost=Cost(90.0, 3 * 2**30)))
    return rows


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_breaks_and_no_line_doubles(width: int) -> None:
    """Columns are left out instead, by name; what a table is about stays."""
    for table, lines, stays in (
        (comparison(Results(wide_rows())), 3, "19.32 ± 0.71"),
        (layer_table(summary()), 3, "0.2000"),
        (exchange_table(summary(barber=True)), 4, "-50.0 %"),
    ):
        text = shown(table, width)
        assert max(map(len, text)) <= width
        rule = next(i for i, line in enumerate(text) if "───" in line)
        body = [line for line in text[rule + 1 :] if line.strip()]
        end = next((i for i, line in enumerate(body) if line.startswith("no room for")), len(body))
        assert (rule, end) == (3, lines), text  # an empty line, the title, the heads
        assert any(stays in line for line in text), text
        said = " ".join(text)
        assert all((column.short or column.head) in said for column in table.columns)


def test_terminal_tables() -> None:
    """Rich draws the same cells; names with brackets are no markup."""
    text = "\n".join(shown(comparison(Results([*sample_rows(), row("[bold]x", "50 %", 20)])), 120))
    assert "[bold]x" in text
    assert "16.65 ± 0.64" in text
