"""What the command line prints when the work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from autoprune.report.comparison import comparison_grids
from autoprune.report.grid import grid_to_rich
from autoprune.report.tables import print_barber, print_comparison, print_layers
from autoprune.report.zeroshot import zeroshot_grid

if TYPE_CHECKING:
    from autoprune.bench.bench import BenchSummary
    from autoprune.bench.reproduce import Reproduction
    from autoprune.evaluation.audit import AuditReport
    from autoprune.results.comparison import Comparison
    from autoprune.run.api import PruneResult
    from autoprune.run.inspect import Inspection

WIDE = 160


def terminal() -> Console:
    """Where results are printed.

    It takes text as it is, for a path may hold brackets. A file or a pipe has no width to fit tables into.
    """
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=WIDE)


def show_result(result: PruneResult) -> None:
    """Tables per block and sub-block, the perplexities, and where the files are."""
    console = terminal()
    if result.summary:
        print_layers(result.summary, console)
        if result.summary.sub_blocks:
            print_barber(result.summary, console)
    if result.row.perplexity:
        print_comparison([result.row], console)
    elif result.summary and not result.row.zeroshot:
        console.print(f"sparsity {result.row.sparsity:.2%}", highlight=False)
    if result.row.zeroshot:
        console.print("Zero-shot accuracy in percent, higher is better", style="bold")
        console.print(grid_to_rich(zeroshot_grid(result.row.zeroshot)))
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
    for grid in comparison_grids(result):
        console.print(grid_to_rich(grid))
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
        console.print(grid_to_rich(table))
    for result in summary.failed:
        console.print(f"FAILED {result.cell.name}: {result.error}", style="red", highlight=False, soft_wrap=True)
    for path in summary.reports:
        console.print(str(path), highlight=False, soft_wrap=True)
    console.print(f"{summary.seconds:.0f} s", highlight=False)


def show_reproduction(result: Reproduction) -> None:
    """The published table beside what came out here."""
    console = terminal()
    console.print(f"{result.name}: {result.source}", highlight=False, soft_wrap=True)
    console.print(grid_to_rich(result.grid))
    for reason in dict.fromkeys(comparison.reason for comparison in result.comparisons if comparison.reason):
        rows = ", ".join(comparison.row for comparison in result.comparisons if comparison.reason == reason)
        console.print(f"{rows} could not run: {reason}", style="red", highlight=False, soft_wrap=True)
