"""Results in the forms that others read: Markdown, CSV, LaTeX and a page."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.report.accuracy import accuracy_table, difference_table, metrics_of
from autoprune.report.distance import distance_table, flips_table
from autoprune.report.page import render_html
from autoprune.report.significance import findings
from autoprune.report.tables import comparison, cost_table
from autoprune.results.table import Table, to_latex, to_markdown
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow

FORMATS = ("md", "csv", "latex", "html")
FILES = {"md": "results.md", "csv": "results.csv", "latex": "results.tex", "html": "report.html"}


def tables_of(results: Results) -> list[Table]:
    """Perplexities with changes, accuracies, and what the runs took where that says more."""
    shown, costs = comparison(results), cost_table(results)
    accuracies = [accuracy_table(results, metric) for metric in metrics_of(results)]
    more = [costs] if set(costs.header) - set(shown.header) else []
    return [table for table in (shown, *accuracies, *more) if table.rows]


def published(
    rows: Sequence[EvaluationRow],
    form: str,
    *,
    title: str = "Results",
    command: str | None = None,
    files: Sequence[str] = (),
) -> str:
    """All results in one of ``FORMATS``. CSV has a line for each run and numbers in full; the others have a line for
    each variant, mean ± deviation over its seeds, the best of each target bold, and sentences about significance.
    """
    results = Results(rows)
    if form == "csv":
        return str(results.wide().to_csv(index=False, lineterminator="\n"))
    if form == "html":
        return render_html(
            rows, title=title, command=command, files=["results.json", "results.csv"] if command else []
        )
    tables = tables_of(results)
    tables += [table for table in (distance_table(results), flips_table(results)) if table.rows]
    tables += [table for metric in metrics_of(results) if (table := difference_table(results, metric)).rows]
    said = list(findings(results))
    if form == "latex":
        parts = [f"% {table.title}\n{to_latex(table)}" for table in tables]
        return "\n".join([*parts, *(f"% {sentence}" for sentence in said)]).rstrip() + "\n"
    parts = [f"**{table.title}**\n\n{to_markdown(table)}" for table in tables]
    return "\n".join([*parts, *(f"* {sentence}" for sentence in said)]).rstrip() + "\n"


def formats(rows: Sequence[EvaluationRow], *, title: str, command: str | None) -> dict[str, str]:
    """All of them by the name of their file."""
    beside = ["results.json", FILES["csv"]]
    return {FILES[form]: published(rows, form, title=title, command=command, files=beside) for form in FORMATS}
