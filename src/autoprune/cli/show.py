"""What the command line prints when the work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from autoprune.report.accuracy import zeroshot_table
from autoprune.report.layers import exchange_table, layer_table
from autoprune.report.significance import findings
from autoprune.report.tables import comparison
from autoprune.results.comparison_tables import comparison_tables
from autoprune.results.table import print_table
from autoprune.results.tidy import Results

if TYPE_CHECKING:
    from autoprune.bench.bench import BenchSummary
    from autoprune.bench.reproduce import Reproduction
    from autoprune.evaluation.audit import AuditReport
    from autoprune.results.comparison import Comparison
    from autoprune.results.types import EvaluationRow
    from autoprune.run.api import PruneResult
    from autoprune.run.inspect import Inspection
    from autoprune.run.rotate import RotateResult

WIDE = 160


def terminal() -> Console:
    """Where results are printed.

    It takes text as it is, for a path may hold brackets. A file or a pipe has no width to fit tables into.
    """
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=WIDE)


def show_result(result: PruneResult, before: Sequence[EvaluationRow] = ()) -> None:
    """Tables per block and sub-block, the perplexities, and where the files are.

    ``before`` are rows that the result is set beside: the dense model, and it after the steps before the last.
    """
    console = terminal()
    if result.summary:
        print_table(layer_table(result.summary), console)
        if result.summary.sub_blocks:
            print_table(exchange_table(result.summary), console)
    if result.row.perplexity:
        print_table(comparison(Results([*before, result.row])), console)
    elif result.summary and not result.row.zeroshot:
        console.print(f"sparsity {result.row.sparsity:.2%}", highlight=False)
    for table in comparison_tables(result.comparison) if result.comparison else ():
        print_table(table, console)
    if result.row.zeroshot:
        console.print("Zero-shot accuracy in percent, higher is better", style="bold")
        print_table(zeroshot_table(result.row.zeroshot), console)
    _say_places(result, console)


def _say_places(result: PruneResult, console: Console) -> None:
    """Where the files are."""
    output = result.recipe.output
    if result.directory:
        console.print(f"checkpoint: {result.directory}", highlight=False, soft_wrap=True)
    elif output.save_model and output.delete and result.summary:
        console.print(
            f"checkpoint: deleted from {output.save_model}, as --delete asks", highlight=False, soft_wrap=True
        )
    if output.save_ppl:
        console.print(f"perplexity: {output.save_ppl}", highlight=False, soft_wrap=True)
    if output.save_zeroshot:
        console.print(f"zero-shot:  {output.save_zeroshot}", highlight=False, soft_wrap=True)


def show_comparison(result: Comparison, directory: str | None) -> None:
    """How far predictions moved, and where the files are."""
    console = terminal()
    for table in comparison_tables(result):
        print_table(table, console)
    if directory:
        console.print(f"comparison: {directory}", highlight=False, soft_wrap=True)


def show_inspection(inspection: Inspection) -> None:
    """The structure of a model, what of it can be pruned, and what that will cost."""
    console = terminal()
    size = (
        f"{inspection.blocks} blocks ({inspection.block_list}), {inspection.parameters:,} parameters,"
        f" {inspection.dtype}"
    )
    console.print(f"{inspection.model}: {size}", highlight=False, soft_wrap=True)
    table = Table("layer", "shape", "shares its input with", "blocks", box=None, pad_edge=False, header_style="bold")
    for layer in inspection.layers:
        table.add_row(layer.name, f"{layer.out} x {layer.features}", layer.shared_with or "-", layer.blocks)
    console.print(table)
    console.print(
        f"coverage: {inspection.coverage:.2%} of the block parameters are weights of these layers", highlight=False
    )
    if inspection.unreached:
        console.print("not reached: " + ", ".join(inspection.unreached), highlight=False)
    if inspection.left_alone:
        console.print("left as they are: " + ", ".join(inspection.left_alone), highlight=False)
    console.print(f"replay: {inspection.replay}", highlight=False)
    costs = Table(
        "method",
        "peak memory",
        "with --activations disk",
        "rough time here",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for cost in inspection.costs:
        costs.add_row(cost.method, f"{cost.bytes / 2**30:.2f} GiB", f"{cost.bytes_on_disk / 2**30:.2f} GiB", cost.time)
    console.print(costs)
    for note in inspection.notes:
        console.print(note, highlight=False)


def show_audit(report: AuditReport, hashes: bool = True) -> None:
    """What `autoprune verify` found."""
    console = terminal()
    weights, zeros = sum(layer.weights for layer in report.layers), sum(layer.zeros for layer in report.layers)
    if weights:
        found = (
            f"{len(report.layers)} pruned layers, {zeros:,} of {weights:,} weights are zero ({zeros / weights:.2%})"
        )
        console.print(f"{report.directory}: {found}", highlight=False, soft_wrap=True)
    for name, digest in report.hashes.items() if hashes else ():
        console.print(f"{digest}  {name}", highlight=False, soft_wrap=True)
    for fault in report.faults:
        console.print(f"FAULT {fault.where} {fault.what}", style="red", highlight=False, soft_wrap=True)
    console.print(
        "sound: nothing is wrong with these files" if report.sound else f"faults: {len(report.faults)}",
        highlight=False,
    )


def show_bench(summary: BenchSummary) -> None:
    """The comparisons of all cells, those that failed, and where the reports are."""
    console = terminal()
    for table in summary.tables:
        print_table(table, console)
    for sentence in findings(Results(summary.rows)):
        console.print(sentence, highlight=False)
    for result in summary.failed:
        console.print(f"FAILED {result.cell.name}: {result.error}", style="red", highlight=False, soft_wrap=True)
    for path in summary.reports:
        console.print(str(path), highlight=False, soft_wrap=True)
    console.print(f"{summary.seconds:.0f} s", highlight=False)


def show_reproduction(result: Reproduction) -> None:
    """The published table beside what came out here."""
    console = terminal()
    console.print(f"{result.name}: {result.source}", highlight=False, soft_wrap=True)
    print_table(result.table, console)
    for reason in dict.fromkeys(c.reason for c in result.comparisons if c.reason):
        rows = ", ".join(c.row for c in result.comparisons if c.reason == reason)
        console.print(f"{rows} could not run: {reason}", style="red", highlight=False, soft_wrap=True)


def show_rotation(result: RotateResult) -> None:
    """What the rotation did, how far its rounding moves logits, and where the model is."""
    console = terminal()
    console.print(
        f"entropy of importance {result.entropy_before:,.0f} -> {result.entropy_after:,.0f} nats"
        f" ({result.change:+.1%}); logits differ by {result.difference:.1e} of their size",
        highlight=False,
    )
    console.print(f"checkpoint: {result.directory}", highlight=False, soft_wrap=True)
