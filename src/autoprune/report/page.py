"""Results as one static HTML page with its pictures inside: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoprune.report import charts
from autoprune.report.accuracy import accuracy_findings, accuracy_table, difference_table, metrics_of
from autoprune.report.distance import flips_table
from autoprune.report.distance_page import distance_section
from autoprune.report.layers import exchange_table, exchange_totals, layer_table
from autoprune.report.sections import Figure, Fold, Section, page_of
from autoprune.report.significance import findings
from autoprune.report.tables import bits_table, comparison, cost_table
from autoprune.results.table import Table, from_rows
from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow
from autoprune.results.variants import Variant, flat_settings, model_of, seed_of

MEASURED = ("loss", "bits_per_byte")  # in a text's provenance: what a single row measured


def render_html(
    rows: Sequence[EvaluationRow],
    *,
    title: str,
    subtitle: str = "",
    command: str | None = None,
    files: Sequence[str] = (),
) -> str:
    """The page as text; the same rows give the same bytes. Sections without data are left out.

    ``files`` are names beside the page that its head links to, such as results.json.
    """
    results = Results(rows)
    sections = [section for model in results.models for section in _of_model(results, model)]
    sections.append(_protocol(results))
    words = {"title": title, "subtitle": subtitle, "command": command, "files": files, "facts": _facts(results)}
    return page_of(sections, words)


def _facts(results: Results) -> list[tuple[str, str]]:
    """Model, size, device, date and versions, each once."""
    about = [row.about for row in results.rows if row.about]
    first = {model_of(row): row.about for row in reversed(results.rows) if row.about}
    models = [f"{m}, {a.parameters:,} parameters, {a.dtype}" if (a := first.get(m)) else m for m in results.models]
    days = sorted({one.date[:10] for one in about})
    versions = dict.fromkeys(f"{name} {version}" for one in about for name, version in one.versions.items())
    facts = {
        "models" if len(models) > 1 else "model": "; ".join(filter(None, models)),
        "device": ", ".join(dict.fromkeys(one.device for one in about)),
        "date": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "versions": ", ".join(versions),
    }
    return [(name, value) for name, value in facts.items() if value]


def _of_model(whole: Results, model: str) -> list[Section]:
    """The sections of one model; where there are several, its name stands before each title."""
    named = len(whole.models) > 1
    results = whole.of_model(model) if named else whole
    makers = (_results, distance_section, _curves, _costs, _zeroshot, _layers, _exchange, _warnings)
    sections = [make(results) for make in makers]
    return [replace(section, title=f"{model}: {section.title}") for section in sections] if named else sections


def _results(results: Results) -> Section:
    whiskers = " Whiskers: standard deviation over seeds." if results.seeds > 1 else ""
    faint = " Pale: the first step alone." if any(v.refined for v in results.variants) else ""
    figures = []
    for text in results.texts:
        if pictures := charts.bars(results, text):
            caption = f"Perplexity on {text.name} in windows of {text.seqlen} tokens; lower is better."
            figures.append(Figure(tuple(pictures), caption + faint + whiskers))
    table = comparison(results)
    lead = "Perplexity, lower is better; the lowest of each target is bold, among equal shares of zeros."
    if results.seeds > 1:
        lead += f" Mean ± standard deviation over up to {results.seeds} seeds."
    if any(head.startswith("change by") for head in table.header):
        lead += " “Change by” is the change of perplexity by the last step, against the same run without it."
    if "pruning, s" in table.header:
        lead += " Pruning: reading and checking the weights, embedding the calibration samples, work on all blocks."
    bits, costs = bits_table(results), cost_table(results)
    folds = [Fold("Bits per byte, which compare between tokenizers", bits)] if bits.rows and bits.columns[2:] else []
    if set(costs.header) - set(table.header):
        folds.append(Fold("Time and memory of the whole runs, each in a process of its own", costs))
    return Section("Results", lead, table, tuple(figures), tuple(folds), tuple(findings(results)))


def _curves(results: Results) -> Section:
    pictures = tuple(picture for text in results.texts for picture in charts.curves(results, text))
    caption = "Perplexity against the actual share of zeros. Dotted lines and rings: the first step alone."
    return Section("Perplexity against sparsity", figures=(Figure(pictures, caption),) if pictures else ())


def _costs(results: Results) -> Section:
    pictures = tuple(picture for text in results.texts for picture in charts.pareto(results, text))
    caption = (
        "Perplexity against the time that pruning took: to the left is quicker, below is better. Rings: the first"
        " step alone. The line joins what nothing else beats in both."
    )
    return Section("Perplexity against time", figures=(Figure(pictures, caption),) if pictures else ())


def _zeroshot(results: Results) -> Section:
    metrics, folds = metrics_of(results), []
    for metric in metrics[1:]:
        folds.append(Fold(f"{metric} of every task", accuracy_table(results, metric)))
    for metric in metrics:
        if (differences := difference_table(results, metric)).rows:
            folds.append(Fold(f"Paired differences in {metric}, in percentage points", differences))
    if (flips := flips_table(results)).rows:
        folds.append(Fold("Answers that are not the dense model’s (flips)", flips))
    lead = (
        "Accuracy in percent by lm-evaluation-harness, higher is better, and the highest of each target is bold; ± is"
        " the standard error over a task’s samples, not over seeds. Differences are taken sample by sample, which"
        " leaves out what all methods find hard; those beyond 1.96 standard errors are bold."
    )
    table = accuracy_table(results, metrics[0]) if metrics else None
    return Section("Zero-shot accuracy", lead, table, folds=tuple(folds), notes=tuple(accuracy_findings(results)))


def _layers(results: Results) -> Section:
    figures = []
    if lines := charts.error_lines(results):
        caption = "Output error on calibration tokens, ‖(W−W′)X‖ / ‖WX‖, mean over the layers of a block."
        figures.append(Figure(tuple(lines), caption + _seed_shown(results)))
    best = [results.best(group, results.texts[0])[:1] if results.texts else group[:1] for group in results.groups()]
    chosen = [v for one in best for v in one]
    errors = [
        charts.heat_map(f"{v.name}, {v.target}", cells, "{:.2f}")
        for v in chosen
        if (cells := {(la.short_name, la.block): la.error for la in _layers_of(v) if la.error is not None})
    ]
    if errors:
        caption = "Output error of every layer after the best of each target; every map has its own scale."
        figures.append(Figure(tuple(errors), caption + _seed_shown(results)))
    sparsities = [
        charts.heat_map(f"{v.name}, {v.target}", cells, "{:.0f}")
        for v in chosen
        if (cells := {(la.short_name, la.block): 100 * la.sparsity for la in _layers_of(v)})
        and max(cells.values()) - min(cells.values()) >= 0.5
    ]
    if sparsities:
        caption = "Sparsity of every layer in %, where the best of a target does not give all the same."
        figures.append(Figure(tuple(sparsities), caption + _seed_shown(results)))
    folds = [
        Fold(f"{v.name}, {v.target}: every layer", layer_table(v.summary, per_layer=True))
        for v in results.variants
        if v.summary and v.summary.layers
    ]
    inside = "tables: zeros, sparsity and error of every layer, method by method"
    return Section("Layers", figures=tuple(figures), folds=tuple(folds), inside=inside)


def _exchange(results: Results) -> Section:
    folds = []
    for variant in results.variants:
        if variant.summary and variant.summary.sub_blocks:
            name = f"{variant.name}, {variant.target}"
            folds.append(Fold(f"{name}: every sub-block", exchange_table(variant.summary)))
            folds.append(Fold(f"{name}: every layer", exchange_table(variant.summary, per_layer=True)))
    lead = (
        "How many pairs of a pruned and a kept weight stood in the wrong order and were exchanged, and the output"
        " error of all sub-blocks together against the dense weights, before and after."
    )
    table = exchange_totals(results) if folds else None
    shown = tuple(fold for fold in folds if fold.table.rows)
    inside = "tables: pairs and losses of every sub-block, pairs and sparsity of every layer"
    return Section("What was exchanged", lead + _seed_shown(results), table, folds=shown, inside=inside)


def _warnings(results: Results) -> Section:
    notes = dict.fromkeys(
        f"{v.name}, {v.target}: {w}"
        for v in results.variants
        for row in v.rows
        if row.pruning
        for w in row.pruning.warnings
    )
    return Section("Warnings", notes=tuple(notes))


def _protocol(results: Results) -> Section:
    """Everything that someone needs to get the same numbers again."""
    seen = {(p.source, p.seqlen): p for row in results.rows for p in row.perplexity}
    lines = [(p.source, str(p.seqlen), f"{p.windows:,}", f"{p.tokens:,}") for p in seen.values()]
    folds = []
    for result in seen.values():
        if about := {key: value for key, value in result.provenance.items() if key not in MEASURED}:
            folds.append(Fold(f"Provenance of {result.source}", _pairs("key", about)))
    for variant in results.variants:
        seeds = [str(s) for row in variant.rows if (s := seed_of(row)) is not None]
        if known := flat_settings(variant.rows[0]) | ({"seed": seeds} if seeds else {}):
            folds.append(Fold(f"Settings of {variant.name}, {variant.target}", _pairs("option", known)))
    lead = (
        "Each text is tokenised once and cut into windows that do not overlap; perplexity is the exponential of the"
        " mean token loss."
    )
    table = Table(from_rows(["text", "window", "windows", "tokens"], lines))
    inside = "tables: where the texts come from, and all settings of every method"
    return Section("How it was measured", lead, table, folds=tuple(folds), inside=inside)


def _layers_of(variant: Variant) -> Sequence[Any]:
    return variant.summary.layers if variant.summary else ()


def _seed_shown(results: Results) -> str:
    """Says so when one seed of several is shown."""
    several = [v for v in results.variants if sum(row.pruning is not None for row in v.rows) > 1]
    if not several:
        return ""
    seed = seed_of(next(row for row in several[0].rows if row.pruning is not None))
    return f" Shown: seed {seed}." if seed is not None else " Shown: the first seed."


def _pairs(head: str, values: Mapping[str, Any]) -> Table:
    words = [(key, ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v)) for key, v in values.items()]
    return Table(from_rows([head, "value"], words, words=2))
