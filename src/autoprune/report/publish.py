"""Results in the forms that others read: Markdown, CSV, LaTeX and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoprune.report.accuracy import accuracy_findings, accuracy_table, difference_table, metrics_of
from autoprune.report.captions import devices, origin, short_name, tasks, windows
from autoprune.report.distance import distance_table, flips_table
from autoprune.report.distance_page import render_comparison
from autoprune.report.page import render_html
from autoprune.report.significance import findings
from autoprune.report.tables import comparison, cost_table
from autoprune.results.comparison import Comparison
from autoprune.results.comparison_tables import comparison_tables
from autoprune.results.latex import RULES, escaped, to_latex
from autoprune.results.table import Table, marked, to_markdown
from autoprune.results.tidy import DIVERGENCE, SAME_TOP, Results
from autoprune.results.types import EvaluationRow

FORMATS = ("md", "csv", "latex", "html")
FILES = {"md": "results.md", "csv": "results.csv", "latex": "results.tex", "html": "report.html"}


def tables_of(results: Results) -> list[Table]:
    """Perplexities with changes, accuracies, and what the runs took where that says more."""
    accuracies = [accuracy_table(results, metric) for metric in metrics_of(results)]
    return [table for table in (comparison(results), *accuracies, *costs_apart(results)) if table.rows]


def costs_apart(results: Results) -> list[Table]:
    """What the runs took, if that says more than the columns beside the perplexities."""
    costs = cost_table(results)
    return [costs] if set(costs.header) - set(comparison(results).header) else []


def published(
    rows: Sequence[EvaluationRow],
    form: str,
    *,
    title: str = "Results",
    command: str | None = None,
    files: Sequence[str] = (),
) -> str:
    """All results in one of ``FORMATS``. CSV has a line for each run and numbers in full; the others have a line for
    each variant, mean ± deviation over its seeds, the best of each target bold, captions that say what was measured
    on what, and sentences about significance.
    """
    results = Results(rows)
    if form == "csv":
        return str(results.wide().to_csv(index=False, lineterminator="\n"))
    if form == "html":
        return render_html(
            rows, title=title, command=command, files=["results.json", "results.csv"] if command else []
        )
    captioned = _captioned(results)
    said = [*findings(results), *accuracy_findings(results)]
    if form == "latex":
        parts = [RULES, *(to_latex(table, f"{table.title}. {words}") for table, words in captioned)]
        items = "\n".join(rf"  \item {escaped(sentence)}" for sentence in said)
        return "\n".join([*parts, *([f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}\n"] if said else [])])
    parts = [f"**{table.title}**\n\n{to_markdown(table)}\n{marked(words)}\n" for table, words in captioned]
    return "\n".join([*parts, *(f"* {marked(sentence)}" for sentence in said)]).rstrip() + "\n"


def _captioned(results: Results) -> list[tuple[Table, str]]:
    """Every table, and what is said below it. No column stands in two of them."""
    distance, costs, metrics = distance_table(results), costs_apart(results), metrics_of(results)
    repeated = {head for head in comparison(results).header if head.startswith((DIVERGENCE, SAME_TOP))}
    repeated |= {column.head for table in costs for column in table.columns if not column.words}
    one_text = {"text"} if len(results.texts) == 1 else set()  # which the caption names
    of_texts = [comparison(results).without(repeated), distance.without(one_text)]
    groups = [(of_texts, windows(results)), *(([accuracy_table(results, m)], tasks(results, m)) for m in metrics)]
    groups += [([flips_table(results)], tasks(results))]
    groups += [([difference_table(results, m)], tasks(results, m)) for m in metrics]
    groups += [(costs, devices(results))]
    return [
        (table, " ".join(filter(None, (table.note, origin(results), what))))
        for tables, what in groups
        for table in tables
        if table.rows
    ]


def published_comparison(result: Comparison, form: str, *, title: str = "") -> str:
    """What `autoprune compare` found, in one of ``FORMATS``; CSV has a line for each model and text, in full.

    ``title`` is the page's; where it is empty the page is named after the dense model.
    """
    if form == "csv":
        return str(result.to_pandas().to_csv(index=False, lineterminator="\n"))
    if form == "html":
        return render_comparison(result, title=title)
    measured = result.settings.get("measured", {}).get("windows", {})
    said = [f"{text}, {facts['windows']:,} windows of {facts['seqlen']} tokens" for text, facts in measured.items()]
    texts = f"Text{'s' * (len(said) > 1)}: {'; '.join(said)}." if said else ""
    captioned = [
        (table, " ".join(filter(None, (table.note, "" if "task" in table.header else texts))))
        for table in comparison_tables(replace(result, dense=short_name(result.dense)))
    ]
    if form == "latex":
        return "\n".join([RULES, *(to_latex(table, f"{table.title}. {words}".rstrip()) for table, words in captioned)])
    return "\n".join(
        f"**{marked(table.title)}**\n\n{to_markdown(table)}\n{marked(words)}".rstrip() + "\n"
        for table, words in captioned
    )


def formats(rows: Sequence[EvaluationRow], *, title: str, command: str | None) -> dict[str, str]:
    """All of them by the name of their file."""
    beside = ["results.json", FILES["csv"]]
    return {FILES[form]: published(rows, form, title=title, command=command, files=beside) for form in FORMATS}
