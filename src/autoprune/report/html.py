"""Results as one static HTML page with its pictures inside: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from autoprune.report import costs, maps, numbers, plots, zeroshot
from autoprune.report.grid import Grid, parts
from autoprune.report.svg import DARK, LIGHT, PRINT, Drawing, css
from autoprune.report.tables import barber_grid, bits_grid, comparison_grid, layer_grid
from autoprune.report.views import Text, Variant, is_dense, seed_of, settings_of, sparsity_moved, texts_of, variants_of
from autoprune.results.types import EvaluationRow

MEASURED = ("loss", "bits_per_byte")  # in a text's provenance: what a single row measured


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together, with the sentence that explains them."""

    pictures: tuple[Drawing, ...]
    caption: str
    heading: str = ""


@dataclass(frozen=True)
class Fold:
    """A table that is opened by a click."""

    summary: str
    grid: Grid


@dataclass(frozen=True)
class Section:
    """One part of the page; left out when it has neither figures nor tables nor notes."""

    title: str
    lead: str = ""
    table: Grid | None = None
    figures: tuple[Figure, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = field(default=())


def render_html(rows: Sequence[EvaluationRow], *, title: str, subtitle: str = "", command: str | None = None) -> str:
    """The page as text; the same rows give the same bytes. Sections without data are left out."""
    from jinja2 import Environment, StrictUndefined

    models = list(dict.fromkeys(str(settings_of(row).get("model", "")) for row in rows))
    sections = [section for model in models for section in _of_one_model(rows, model, named=len(models) > 1)]
    sections.append(_protocol(rows, variants_of(rows)))
    shown = [s for s in sections if (s.table and s.table.rows) or s.figures or s.folds or s.notes]
    source = resources.files("autoprune.report").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["parts"] = parts
    environment.filters["tie"] = lambda words: words.replace(" %", "\N{NO-BREAK SPACE}%")
    counter = iter(range(1, 1_000_000))

    def inline(picture: Drawing) -> str:
        return picture.inline(f"p{next(counter)}")

    palettes = {"light": css(LIGHT), "dark": css(DARK), "print": css(PRINT)}
    return environment.from_string(source).render(
        title=title, subtitle=subtitle, command=command, sections=shown, inline=inline, **palettes
    )


def _of_one_model(rows: Sequence[EvaluationRow], model: str, *, named: bool) -> list[Section]:
    """The sections of one model's rows; ``named`` puts the model's name before each title."""
    own = [row for row in rows if str(settings_of(row).get("model", "")) == model]
    variants, texts = variants_of(own), texts_of(own)
    sections = [
        _results(own, variants, texts),
        _curves(variants, texts),
        _costs(variants, texts),
        _zeroshot(variants),
        _errors(variants),
        _barber(variants),
        _warnings(variants),
    ]
    return [replace(section, title=f"{model}: {section.title}") for section in sections] if named else sections


def _results(rows: Sequence[EvaluationRow], variants: Sequence[Variant], texts: Sequence[Text]) -> Section:
    seeds = max((len(v.rows) for v in variants), default=0)
    figures = []
    for text in texts:
        if pictures := plots.perplexity_bars(variants, text):
            caption = f"Perplexity on {text.name} in windows of {text.seqlen} tokens; lower is better."
            if any(v.rebuilt for v in variants):
                caption += " Faint bars are first passes, solid bars what LLM-Barber made of them."
            figures.append(
                Figure(tuple(pictures), caption + (" Whiskers: standard deviation over seeds." if seeds > 1 else ""))
            )
    lead = "Perplexity, lower is better; the lowest of each target is bold."
    if seeds > 1:
        lead += f" Mean ± standard deviation over up to {seeds} seeds."
    if any(v.method.endswith("+barber") for v in variants):
        lead += " The last column is LLM-Barber’s change of perplexity against its own first pass."
    bits = bits_grid(rows)
    folds = (Fold("Bits per byte, which compare between tokenizers", bits),) if bits.rows else ()
    return Section(
        "Results",
        lead,
        comparison_grid(rows) if rows else None,
        tuple(figures),
        folds,
        tuple(_findings(variants, texts)),
    )


def _findings(variants: Sequence[Variant], texts: Sequence[Text]) -> Iterable[str]:
    """One sentence per target: what did best, on the first text."""
    if not texts:
        return
    dense = next((s for v in variants if is_dense(v.rows[0]) and (s := v.perplexity(texts[0]))), None)
    for target in dict.fromkeys(v.target for v in variants if not is_dense(v.rows[0])):
        found = [
            (s.mean, v.title)
            for v in variants
            if v.target == target and (s := v.perplexity(texts[0])) and math.isfinite(s.mean)
        ]
        if len(found) > 1:
            mean, name = min(found)
            beside = f", dense {numbers.perplexity_text(dense.mean)}" if dense else ""
            yield f"Best at {target}: {name}, {numbers.perplexity_text(mean)} on {texts[0].label}{beside}."


def _curves(variants: Sequence[Variant], texts: Sequence[Text]) -> Section:
    pictures = tuple(picture for text in texts for picture in plots.perplexity_curves(variants, text))
    caption = (
        "Perplexity against the actual share of zeros. Solid lines were rebuilt by LLM-Barber, dotted ones are first"
        " passes."
    )
    if any(len(v.rows) > 1 for v in variants):
        caption += " Whiskers: standard deviation over seeds."
    return Section("Perplexity against sparsity", figures=(Figure(pictures, caption),) if pictures else ())


def _costs(variants: Sequence[Variant], texts: Sequence[Text]) -> Section:
    pictures = tuple(picture for text in texts for picture in costs.pareto(variants, text))
    caption = "Perplexity against the time that pruning took: to the left is quicker, below is better."
    caption += (
        " Rings are first passes, dots were rebuilt by LLM-Barber. The line joins what no other method beats in both."
    )
    if any(len(v.rows) > 1 for v in variants):
        caption += " Whiskers: standard deviation over seeds."
    lead = "Pruning: reading and checking the weights, embedding the calibration samples, and the work on all blocks."
    grid = costs.cost_grid(variants)
    if "whole run, s" in grid.header:
        lead += " Every run was a process of its own; the whole run also holds imports, texts and evaluation."
        lead += " Peak memory is the largest over the seeds."
    return Section(
        "Time and memory" if len(grid.header) > 3 else "Time",
        lead,
        grid,
        (Figure(pictures, caption),) if pictures else (),
    )


def _zeroshot(variants: Sequence[Variant]) -> Section:
    metrics, folds = zeroshot.metrics_of(variants), []
    for metric in metrics[1:]:
        folds.append(Fold(f"{metric} of every task", zeroshot.accuracy_grid(variants, metric)))
    for metric in metrics:
        if (differences := zeroshot.difference_grid(variants, metric)).rows:
            folds.append(Fold(f"Paired differences in {metric}, in percentage points", differences))
    lead = (
        "Accuracy in percent by lm-evaluation-harness, higher is better; ± is the standard error over a task’s"
        " samples, not over seeds."
    )
    lead += (
        " Differences are taken sample by sample, which leaves out what all methods find hard; those beyond 1.96"
        " standard errors are bold."
    )
    return Section(
        "Zero-shot accuracy",
        lead,
        zeroshot.accuracy_grid(variants, metrics[0]) if metrics else None,
        folds=tuple(folds),
    )


def _errors(variants: Sequence[Variant]) -> Section:
    errors = [
        la.error
        for v in variants
        if v.summary
        for la in v.summary.layers
        if la.error is not None and math.isfinite(la.error)
    ]
    highest = max(errors, default=0.0)
    drawn = tuple(m for v in variants if (m := maps.error_map(v, highest)))
    figures = []
    if drawn:
        caption = (
            "Relative output error of each layer on calibration tokens, ‖(W−W′)X‖ / ‖WX‖. One colour scale for all,"
            f" from 0 to {highest:.2f}."
        )
        figures.append(Figure(drawn, caption + _first_seed(variants)))
    if sparse := tuple(m for v in variants if (m := maps.sparsity_map(v))):
        caption = (
            "Sparsity of each layer in %, where a method does not give every layer the same. Each map has its own"
            " colour scale."
        )
        figures.append(Figure(sparse, caption + _first_seed(variants)))
    folds = [
        Fold(f"{v.title}, {v.target}: every layer", layer_grid(v.summary, per_layer=True))
        for v in variants
        if v.summary and v.summary.layers
    ]
    return Section("Layers", figures=tuple(figures), folds=tuple(folds))


def _barber(variants: Sequence[Variant]) -> Section:
    figures, folds = [], []
    for variant in variants:
        summary = variant.summary
        if summary is None or not summary.sub_blocks:
            continue
        drawn = (maps.loss_dumbbells(summary), maps.exchange_dumbbells(summary), maps.movement_map(variant))
        before, after = sum(s.loss_before for s in summary.sub_blocks), sum(s.loss_after for s in summary.sub_blocks)
        pairs, compared = sum(s.exchanged for s in summary.sub_blocks), sum(s.compared for s in summary.sub_blocks)
        caption = (
            f"{pairs:,} pairs exchanged, {numbers.share_text(pairs / compared) if compared else '-'} of those"
            " compared."
        )
        if before > 0:
            losses = f"{numbers.loss_text(before)} before, {numbers.loss_text(after)} after"
            caption += f" Sum of the sub-blocks’ losses: {losses} ({numbers.change_text(after / before)})."
        if sparsity_moved(summary):
            caption += " Positive: the layer became sparser; negative: it got weights back."
        figures.append(
            Figure(
                tuple(d for d in drawn if d), caption + _first_seed([variant]), f"{variant.title}, {variant.target}"
            )
        )
        folds.append(Fold(f"{variant.title}, {variant.target}: every sub-block", barber_grid(summary)))
        folds.append(Fold(f"{variant.title}, {variant.target}: every layer", barber_grid(summary, per_layer=True)))
    lead = (
        "For every attention and MLP sub-block: its output error against the dense weights before and after the"
        " exchange, and how many pairs of a pruned and a kept weight stood in the wrong order and were exchanged."
    )
    return Section(
        "What LLM-Barber exchanged", lead, figures=tuple(figures), folds=tuple(f for f in folds if f.grid.rows)
    )


def _warnings(variants: Sequence[Variant]) -> Section:
    notes = dict.fromkeys(
        f"{v.title}, {v.target}: {w}" for v in variants for row in v.rows if row.pruning for w in row.pruning.warnings
    )
    return Section("Warnings", notes=tuple(notes))


def _protocol(rows: Sequence[EvaluationRow], variants: Sequence[Variant]) -> Section:
    """Everything that someone needs to get the same numbers again."""
    seen = {(p.source, p.seqlen): p for row in rows for p in row.perplexity}
    lines = tuple((p.source, str(p.seqlen), f"{p.windows:,}", f"{p.tokens:,}") for p in seen.values())
    folds = []
    for result in seen.values():
        if about := {key: value for key, value in result.provenance.items() if key not in MEASURED}:
            folds.append(Fold(f"Provenance of {result.source}", _pairs("key", about)))
    for variant in variants:
        settings = settings_of(variant.rows[0])
        seeds = [str(s) for row in variant.rows if (s := seed_of(row)) is not None]
        known = settings | ({"seed": seeds} if seeds else {})
        if known:
            folds.append(Fold(f"Settings of {variant.title}, {variant.target}", _pairs("option", known)))
    lead = (
        "Each text is tokenised once and cut into windows that do not overlap; perplexity is the exponential of the"
        " mean token loss."
    )
    return Section(
        "How it was measured", lead, Grid(("text", "window", "windows", "tokens"), lines, words=1), folds=tuple(folds)
    )


def _first_seed(variants: Sequence[Variant]) -> str:
    """Says so when pictures show one seed of several."""
    several = [v for v in variants if sum(row.pruning is not None for row in v.rows) > 1]
    if not several:
        return ""
    seed = seed_of(next(row for row in several[0].rows if row.pruning is not None))
    return f" Shown: seed {seed}." if seed is not None else " Shown: the first seed."


def _pairs(head: str, values: Mapping[str, Any]) -> Grid:
    return Grid((head, "value"), tuple((key, _word(value)) for key, value in values.items()))


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
