"""The part of a page about the distance from the dense model, and the page of `autoprune compare`."""

from __future__ import annotations

from autoprune.report.distance import distance_table, distributions, places
from autoprune.report.sections import Figure, Section, page_of
from autoprune.results.comparison import Comparison
from autoprune.results.comparison_tables import comparison_tables
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow


def distance_section(results: Results) -> Section:
    figures = []
    for text in results.texts:
        if drawn := distributions(results, text):
            caption = (
                "How the divergence of single tokens is spread, further left is nearer to the dense model. The line is"
                " the median; each outline has its own height; all below a millionth of a nat is in the first bar."
            )
            figures.append(Figure(tuple(drawn), caption))
        if drawn := places(results, text):
            caption = "Whether long context suffers more: a line that rises says so. Rings: the first step alone."
            figures.append(Figure(tuple(drawn), caption))
    lead = (
        "KL divergence of the pruned model’s predictions from the dense model’s, mean over the second half of each"
        " window; lower is better, and the nearest of each target is bold. Same top: share of tokens for which both"
        " put the same token first. Δp: how the following token’s probability changed."
    )
    table = distance_table(results)
    return Section("Distance from the dense model", lead if table.rows else "", table, tuple(figures))


def render_comparison(result: Comparison, *, title: str = "") -> str:
    """All that `autoprune compare` found as a page of its own; the same bytes every time."""
    names = {model.model: model.model + " (compared)" * (model.model == "dense") for model in result.models}
    rows = [
        EvaluationRow(names[model.model], "", 0.0, (), {"model": result.dense}, shifts=dict(model.shifts))
        for model in result.models
    ]
    distance = distance_section(Results(rows))
    tables = comparison_tables(result)
    sections = [Section(distance.title, distance.lead, figures=distance.figures)] if distance.figures else []
    sections += [Section(table.title, table=table) for table in tables]
    words = {"subtitle": "", "command": None, "files": ["comparison.json"]}
    words["title"] = title or f"Distance from {result.dense}"
    return page_of(sections, {**words, "facts": _facts(result)})


def _facts(result: Comparison) -> list[tuple[str, str]]:
    """The dense model and its size, the texts, device, date and versions, as far as they are known."""
    measured = result.settings.get("measured", {})
    windows = [f"{text}: {facts['windows']} windows" for text, facts in measured.get("windows", {}).items()]
    facts = {"dense model": result.dense, "texts": ", ".join(windows)}
    if about := measured.get("about"):
        facts["dense model"] += f", {about['parameters']:,} parameters, {about['dtype']}"
        facts |= {"device": about["device"], "date": about["date"][:10]}
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [(name, value) for name, value in facts.items() if value]
