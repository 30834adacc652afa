"""What became of layers and sub-blocks, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoprune.report.tables import names_of
from autoprune.results import numbers
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.results.table import Table, from_rows
from autoprune.results.tidy import Results
from autoprune.results.types import PruningSummary


def layer_table(summary: PruningSummary, *, per_layer: bool = False) -> Table:
    """Zeros, sparsity and relative output error, block by block or layer by layer."""
    lines: list[tuple[str, ...]]
    last = ("all", "", *_counts(summary.layers))
    if per_layer:
        heads = ["block", "layer", "weights", "zeros", "sparsity", "relative error"]
        lines = [(str(la.block), la.short_name, *_counts([la]), numbers.error_text(la.error)) for la in summary.layers]
        return Table(from_rows(heads, [*lines, (*last, "")], words=2), frozenset({len(lines) - 1}), "What was pruned")
    heads = ["block", "layers", "weights", "zeros", "sparsity", "mean error", "worst error", "in layer"]
    blocks = dict.fromkeys(la.block for la in summary.layers)
    lines = [_block_line(block, [la for la in summary.layers if la.block == block]) for block in blocks]
    *columns, worst = from_rows(heads, [*lines, (*last, "", "", "")])
    spare = {"layers": 3, "weights": 2, "zeros": 4, "mean error": 1}
    shown = [replace(column, spare=spare.get(column.head, 0)) for column in columns]
    return Table((*shown, replace(worst, words=True, spare=5)), frozenset({len(lines) - 1}), "What was pruned")


def exchange_table(summary: PruningSummary, *, per_layer: bool = False) -> Table:
    """Kept against pruned weights exchanged, by sub-block or by layer; no lines where none were."""
    if per_layer:
        heads = ["block", "layer", "inverted pairs", "grown", "dropped", "sparsity before", "sparsity after", "moved"]
        rows = [_layer_line(la, before) for la in summary.layers if (before := la.sparsity_before) is not None]
        return Table(from_rows(heads, rows, words=2), title="What was exchanged, by layer")
    heads = ["block", "sub-block", "inverted pairs", "exchanged", "loss before", "loss after", "change"]
    moved = any(layer.notes.get("grown") != layer.notes.get("dropped") for layer in summary.layers)
    heads += ["sparsity gained most", "lost most"] if moved else []
    lines = [(*_sub_block_line(sub), *(_movement(sub, summary) if moved else ())) for sub in summary.sub_blocks]
    spare = {"sparsity gained most": 5, "lost most": 6, "loss before": 3, "loss after": 2, "inverted pairs": 1}
    columns = [replace(c, spare=spare.get(c.head, 0)) for c in from_rows(heads, lines, words=2)]
    return Table(tuple(columns), title="What was exchanged, by sub-block")


def exchange_totals(results: Results) -> Table:
    """A line for every variant that exchanged weights: pairs, and the losses of all sub-blocks together."""
    variants = [v for v in results.variants if v.summary and v.summary.sub_blocks]
    totals = [_total(v.summary.sub_blocks) for v in variants if v.summary]
    lines = [_sub_block_line(total)[2:] for total in totals]
    heads = ["inverted pairs", "exchanged", "loss before", "loss after", "change"]
    names = names_of(variants, models=len(results.models) > 1)
    return Table((*names, *from_rows(heads, lines, words=0)), title="What was exchanged")


def _total(subs: Sequence[SubBlockOutcome]) -> SubBlockOutcome:
    sums = (sum(getattr(sub, name) for sub in subs) for name in ("compared", "inverted", "exchanged"))
    return SubBlockOutcome(0, "", sum(s.loss_before for s in subs), sum(s.loss_after for s in subs), *sums)


def _block_line(block: int, layers: Sequence[LayerOutcome]) -> tuple[str, ...]:
    errors = [(la.error, la.short_name) for la in layers if la.error is not None]
    mean = numbers.error_text(sum(e for e, _ in errors) / len(errors) if errors else None)
    worst, name = max(errors) if errors else (None, "-")
    return str(block), str(len(layers)), *_counts(layers), mean, numbers.error_text(worst), name


def _sub_block_line(sub: SubBlockOutcome) -> tuple[str, ...]:
    share = numbers.share_text(sub.inverted / sub.compared) if sub.compared else "-"
    change = numbers.change_text(sub.loss_after / sub.loss_before) if sub.loss_before > 0 else "-"
    losses = numbers.loss_text(sub.loss_before), numbers.loss_text(sub.loss_after)
    return str(sub.block), sub.name, share, f"{sub.exchanged:,}", *losses, change


def _layer_line(layer: LayerOutcome, before: float) -> tuple[str, ...]:
    notes, after = layer.notes, layer.sparsity
    known = notes.get("compared") and "inverted" in notes
    share = numbers.share_text(notes["inverted"] / notes["compared"]) if known else "-"
    sparsities = numbers.percent_text(before), numbers.percent_text(after), numbers.points_text(before, after)
    return str(layer.block), layer.short_name, share, f"{notes['grown']:,}", f"{notes['dropped']:,}", *sparsities


def _movement(sub: SubBlockOutcome, summary: PruningSummary) -> tuple[str, str]:
    """The layers of the sub-block that gained and lost most sparsity."""
    names = sub.name.split("+")
    moves = sorted(
        (la.sparsity - before, la.short_name.rpartition(".")[2])
        for la in summary.layers
        if la.block == sub.block and any(la.short_name == n or la.short_name.startswith(n + ".") for n in names)
        if (before := la.sparsity_before) is not None
    )
    if not moves or moves[0][0] == moves[-1][0]:
        return "-", "-"
    (low, loser), (high, winner) = moves[0], moves[-1]
    return f"{winner} {numbers.points_text(0, high)}", f"{loser} {numbers.points_text(0, low)}"


def _counts(layers: Sequence[LayerOutcome]) -> tuple[str, str, str]:
    weights, zeros = sum(la.weights for la in layers), sum(la.zeros for la in layers)
    return f"{weights:,}", f"{zeros:,}", numbers.percent_text(zeros / weights if weights else 0.0)
