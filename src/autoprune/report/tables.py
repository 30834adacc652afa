"""Results as tables: what ``log_<method>_<threshold>.txt`` holds, and what is shown after a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autoprune.report import numbers
from autoprune.report.frames import flat_rows
from autoprune.report.grid import Grid, grid_to_csv, grid_to_rich, to_text
from autoprune.report.views import (
    Text,
    Variant,
    barber_effect,
    perplexity_of,
    seed_of,
    short_name,
    sparsity_before,
    sparsity_moved,
    texts_of,
    variants_of,
)
from autoprune.results.types import EvaluationRow, LayerOutcome, PruningSummary, SubBlockOutcome

if TYPE_CHECKING:
    from rich.console import Console


WIDE_ENOUGH = 132  # letters: a terminal of this width takes the widest table


def perplexity_log(rows: Sequence[EvaluationRow]) -> str:
    """Aligned columns: method, target, actual sparsity, and one per evaluation text with its window length."""
    texts, seeds = texts_of(rows), _seeds_differ(rows)
    header = ("method", "target", *(("seed",) if seeds else ()), "actual sparsity", *(text.label for text in texts))
    lines = []
    for row in rows:
        seed = (_word(seed_of(row)),) if seeds else ()
        lines.append(
            (row.method, row.target, *seed, numbers.percent_text(row.sparsity), *(_cell(row, text) for text in texts))
        )
    return to_text(Grid(header, tuple(lines)))


def comparison_table(rows: Sequence[EvaluationRow]) -> str:
    """One line per variant, mean ± standard deviation over seeds, and what LLM-Barber changed."""
    return to_text(comparison_grid(rows))


def to_csv(rows: Sequence[EvaluationRow]) -> str:
    """One line per row, numbers in full, for programs: the columns of ``flat_rows``."""
    lines = flat_rows(rows)
    header = tuple(dict.fromkeys(name for line in lines for name in line))
    return grid_to_csv(Grid(header, tuple(tuple(_word(line.get(name), "") for name in header) for line in lines)))


def layer_table(summary: PruningSummary, *, per_layer: bool = False) -> str:
    """Zeros, sparsity and relative output error, block by block or layer by layer."""
    return to_text(layer_grid(summary, per_layer=per_layer))


def barber_table(summary: PruningSummary, *, per_layer: bool = False) -> str:
    """What LLM-Barber exchanged, by sub-block or by layer; empty where it did not run."""
    grid = barber_grid(summary, per_layer=per_layer)
    return to_text(grid) if grid.rows else ""


def print_comparison(rows: Sequence[EvaluationRow], console: Console) -> None:
    """The comparison on a terminal."""
    console.print(grid_to_rich(comparison_grid(rows)))


def print_layers(summary: PruningSummary, console: Console, *, per_layer: bool = False) -> None:
    """The table of blocks or layers on a terminal."""
    console.print(grid_to_rich(layer_grid(summary, per_layer=per_layer)))


def print_barber(summary: PruningSummary, console: Console, *, per_layer: bool = False) -> None:
    """LLM-Barber's table on a terminal, without its last columns where they would not fit; nothing where it did not
    run.
    """
    grid = barber_grid(summary, per_layer=per_layer, movement=console.width >= WIDE_ENOUGH)
    if grid.rows:
        console.print(grid_to_rich(grid))


def comparison_grid(rows: Sequence[EvaluationRow]) -> Grid:
    """The comparison as cells."""
    texts, variants = texts_of(rows), variants_of(rows)
    effects = [barber_effect(v, variants, texts) for v in variants]
    shown = any(effect is not None for effect in effects)
    header = ("method", "target", "sparsity", *(text.label for text in texts), *(("LLM-Barber",) if shown else ()))
    lines = []
    for variant, effect in zip(variants, effects, strict=True):
        cells = [_spread_cell(variant, text) for text in texts]
        last = ("" if effect is None else numbers.change_text(effect.mean, effect.sd),) if shown else ()
        lines.append((variant.name, variant.target, numbers.percent_text(variant.sparsity), *cells, *last))
    breaks = frozenset(i for i in range(len(variants) - 1) if variants[i].target != variants[i + 1].target)
    return Grid(
        header, tuple(lines), strong=_best(variants, texts), breaks=breaks, title="Perplexity, lower is better"
    )


def bits_grid(rows: Sequence[EvaluationRow]) -> Grid:
    """Bits per byte of every variant on every text, as far as they are known; no lines where none is."""
    variants = variants_of(rows)
    texts = [text for text in texts_of(rows) if any(v.bits_per_byte(text) for v in variants)]
    lines = []
    for variant in variants if texts else ():
        found = [variant.bits_per_byte(text) for text in texts]
        lines.append(
            (
                variant.name,
                variant.target,
                *("-" if s is None else numbers.perplexity_text(s.mean, s.sd) for s in found),
            )
        )
    breaks = frozenset(i for i in range(len(lines) - 1) if variants[i].target != variants[i + 1].target)
    return Grid(
        ("method", "target", *(text.label for text in texts)),
        tuple(lines),
        breaks=breaks,
        title="Bits per byte, lower is better",
    )


def layer_grid(summary: PruningSummary, *, per_layer: bool = False) -> Grid:
    """The table of blocks or layers as cells."""
    last = ("all", "", *_counts(summary.layers))
    if per_layer:
        body = [(str(la.block), short_name(la), *_counts([la]), numbers.error_text(la.error)) for la in summary.layers]
        header: tuple[str, ...] = ("block", "layer", "weights", "zeros", "sparsity", "relative error")
        rows: tuple[tuple[str, ...], ...] = (*body, (*last, ""))
    else:
        header = ("block", "layers", "weights", "zeros", "sparsity", "mean error", "worst error")
        rows = (*(_block_line(block, layers) for block, layers in _blocks(summary)), (*last, "", ""))
    return Grid(header, rows, words=2 if per_layer else 1, breaks=frozenset({len(rows) - 2}), title="What was pruned")


def barber_grid(summary: PruningSummary, *, per_layer: bool = False, movement: bool = True) -> Grid:
    """LLM-Barber's table as cells; ``movement`` adds between which layers sparsity moved, if it did."""
    if per_layer:
        header: tuple[str, ...] = (
            "block",
            "layer",
            "inverted pairs",
            "grown",
            "dropped",
            "sparsity before",
            "sparsity after",
            "moved",
        )
        rows = tuple(_barber_layer_line(la) for la in summary.layers if sparsity_before(la) is not None)
        return Grid(header, rows, title="What LLM-Barber exchanged, by layer")
    moved = movement and sparsity_moved(summary)
    header = ("block", "sub-block", "inverted pairs", "exchanged", "loss before", "loss after", "change")
    header += ("sparsity gained most", "lost most") if moved else ()
    rows = tuple((*_barber_line(sub), *(_movement(sub, summary) if moved else ())) for sub in summary.sub_blocks)
    return Grid(header, rows, title="What LLM-Barber exchanged, by sub-block")


def _best(variants: Sequence[Variant], texts: Sequence[Text]) -> frozenset[tuple[int, int]]:
    """The lowest perplexity of each target and text, where there is something to compare it with."""
    best = set()
    for target in {v.target for v in variants}:
        for j, text in enumerate(texts):
            found = {
                i: s.mean
                for i, v in enumerate(variants)
                if v.target == target and (s := v.perplexity(text)) and math.isfinite(s.mean)
            }
            if len(found) > 1:
                best.add((min(found, key=found.__getitem__), 3 + j))
    return frozenset(best)


def _block_line(block: int, layers: Sequence[LayerOutcome]) -> tuple[str, ...]:
    errors = [(la.error, short_name(la)) for la in layers if la.error is not None]
    mean = numbers.error_text(sum(e for e, _ in errors) / len(errors) if errors else None)
    worst = max(errors) if errors else None
    return (
        str(block),
        str(len(layers)),
        *_counts(layers),
        mean,
        f"{numbers.error_text(worst[0])} {worst[1]}" if worst else "-",
    )


def _barber_line(sub: SubBlockOutcome) -> tuple[str, ...]:
    share = numbers.share_text(sub.inverted / sub.compared) if sub.compared else "-"
    change = numbers.change_text(sub.loss_after / sub.loss_before) if sub.loss_before > 0 else "-"
    return (
        str(sub.block),
        sub.name,
        share,
        f"{sub.exchanged:,}",
        numbers.loss_text(sub.loss_before),
        numbers.loss_text(sub.loss_after),
        change,
    )


def _barber_layer_line(layer: LayerOutcome) -> tuple[str, ...]:
    before, notes = sparsity_before(layer), layer.notes
    assert before is not None
    share = (
        numbers.share_text(notes["inverted"] / notes["compared"])
        if notes.get("compared") and "inverted" in notes
        else "-"
    )
    counts = (f"{notes['grown']:,}", f"{notes['dropped']:,}")
    sparsities = (
        numbers.percent_text(before),
        numbers.percent_text(layer.sparsity),
        numbers.points_text(before, layer.sparsity),
    )
    return str(layer.block), short_name(layer), share, *counts, *sparsities


def _movement(sub: SubBlockOutcome, summary: PruningSummary) -> tuple[str, str]:
    """The layers of the sub-block that gained and lost most sparsity."""
    names = sub.name.split("+")
    inside = [
        la
        for la in summary.layers
        if la.block == sub.block and any(short_name(la) == n or short_name(la).startswith(n + ".") for n in names)
    ]
    moves = sorted(
        (la.sparsity - before, short_name(la).rpartition(".")[2])
        for la in inside
        if (before := sparsity_before(la)) is not None
    )
    if not moves or moves[0][0] == moves[-1][0]:
        return "-", "-"
    (low, loser), (high, winner) = moves[0], moves[-1]
    return f"{winner} {numbers.points_text(0, high)}", f"{loser} {numbers.points_text(0, low)}"


def _blocks(summary: PruningSummary) -> Iterator[tuple[int, list[LayerOutcome]]]:
    for block in dict.fromkeys(la.block for la in summary.layers):
        yield block, [la for la in summary.layers if la.block == block]


def _counts(layers: Sequence[LayerOutcome]) -> tuple[str, str, str]:
    weights, zeros = sum(la.weights for la in layers), sum(la.zeros for la in layers)
    return f"{weights:,}", f"{zeros:,}", numbers.percent_text(zeros / weights if weights else 0.0)


def _cell(row: EvaluationRow, text: Text) -> str:
    value = perplexity_of(row, text)
    return "-" if value is None else numbers.perplexity_text(value)


def _spread_cell(variant: Variant, text: Text) -> str:
    spread = variant.perplexity(text)
    return "-" if spread is None else numbers.perplexity_text(spread.mean, spread.sd)


def _seeds_differ(rows: Sequence[EvaluationRow]) -> bool:
    return len({str(seed_of(row)) for row in rows if seed_of(row) is not None}) > 1


def _word(value: object, missing: str = "-") -> str:
    return missing if value is None else str(value)
