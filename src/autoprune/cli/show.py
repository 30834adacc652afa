"""What the command line prints when the work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from autoprune.report.accuracy import zeroshot_table
from autoprune.report.layers import exchange_table, layer_table
from autoprune.report.significance import findings
from autoprune.report.tables import comparison
from autoprune.results.comparison_tables import comparison_tables
from autoprune.results.numbers import bytes_text, mebibytes_text
from autoprune.results.speed_tables import speed_tables
from autoprune.results.table import Table, from_rows, print_table, spared
from autoprune.results.tidy import Results
from autoprune.results.variants import with_references

if TYPE_CHECKING:
    from autoprune.bench.bench import BenchSummary
    from autoprune.bench.reproduce import Reproduction
    from autoprune.evaluation.audit import AuditReport
    from autoprune.results.comparison import Comparison
    from autoprune.results.speed import SpeedResult
    from autoprune.results.types import Cost, FileSize
    from autoprune.run.api import PruneResult
    from autoprune.run.inspect import Inspection
    from autoprune.run.rotate import RotateResult
    from autoprune.run.shrink import ShrinkResult

WIDE = 160
LONGEST = 4  # phases of a run that are told of


def terminal() -> Console:
    """Where results are printed.

    It takes text as it is, for a path may hold brackets. A file or a pipe has no width to fit tables into.
    """
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=WIDE)


def show_result(result: PruneResult) -> None:
    """Tables per block and sub-block, the perplexities beside those before, what the run took, and where the files
    are.
    """
    console = terminal()
    if result.summary:
        print_table(layer_table(result.summary), console)
        if result.summary.sub_blocks:
            print_table(exchange_table(result.summary), console)
    if result.row.perplexity:
        print_table(comparison(Results(with_references([result.row]))), console)
    elif result.summary and not result.row.zeroshot:
        console.print(f"sparsity {result.row.sparsity:.2%}", highlight=False)
    for table in comparison_tables(result.comparison) if result.comparison else ():
        print_table(table, console)
    if result.row.zeroshot:
        console.print("Zero-shot accuracy in percent, higher is better", style="bold")
        print_table(zeroshot_table(result.row.zeroshot), console)
    _show_ends(result, console)


def _show_ends(result: PruneResult, console: Console) -> None:
    """What the run took, how large the result is, and where everything lies."""
    row, output = result.row, result.recipe.output
    costs = [cost_text(row.cost)] if row.cost else []
    costs += [size_text(row.size)] if row.size else []
    lines: list[str] = []
    if result.directory:
        lines.append(f"checkpoint: {result.directory}")
    elif output.save_model and output.delete and result.summary:
        lines.append(f"checkpoint: deleted from {output.save_model}, as --delete asks")
    lines += [f"perplexity: {output.save_ppl}"] if output.save_ppl else []
    lines += [f"zero-shot:  {output.save_zeroshot}"] if output.save_zeroshot else []
    for line in costs:  # sentences: broken between words, but not in a file
        console.print(line, highlight=False, soft_wrap=not console.is_terminal)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def cost_text(cost: Cost) -> str:
    """``took 42 s (pruning 12 s, perplexity demo 20 s), peak memory 1,234 MiB``."""
    longest = sorted(cost.phases, key=lambda name: -cost.phases[name])[:LONGEST]
    parts = ", ".join(f"{name} {_seconds(cost.phases[name])}" for name in cost.phases if name in longest)
    device = f", {mebibytes_text(cost.device_bytes)} MiB on the device" if cost.device_bytes else ""
    took = f"took {_seconds(cost.seconds)}" + (f" ({parts})" if parts else "")
    return f"{took}, peak memory {mebibytes_text(cost.peak_bytes)} MiB{device}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def size_text(size: FileSize) -> str:
    """``weights: stored 2.20 GB, compressed about 1.50 GB``."""
    return f"weights: stored {bytes_text(size.stored)}, compressed about {bytes_text(size.compressed)}"


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
    console.print(f"{inspection.model}: {size}", highlight=False, soft_wrap=not console.is_terminal)
    rows = [(one.name, f"{one.out} x {one.features}", one.blocks, one.shared_with or "-") for one in inspection.layers]
    layers = from_rows(("layer", "shape", "blocks", "shares its input with"), rows, words=4)
    print_table(Table(tuple(spared(layers, {"shares its input with": 1}))), console)
    console.print(
        f"coverage: {inspection.coverage:.2%} of the block parameters are weights of these layers", highlight=False
    )
    if inspection.unreached:
        console.print("not reached: " + ", ".join(inspection.unreached), highlight=False)
    if inspection.left_alone:
        console.print("left as they are: " + ", ".join(inspection.left_alone), highlight=False)
    console.print(f"replay: {inspection.replay}", highlight=False)
    heads = ("method", "peak memory", "with --activations disk", "rough time here")
    costs = from_rows(
        heads,
        [
            (one.method, f"{one.bytes / 2**30:.2f} GiB", f"{one.bytes_on_disk / 2**30:.2f} GiB", one.time)
            for one in inspection.costs
        ],
    )
    shorts = {"with --activations disk": "--activations disk"}
    print_table(Table(tuple(spared(costs, {"with --activations disk": 1}, shorts))), console)
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
        room = console.width - len(name) - 2
        cut = console.is_terminal and room < len(digest)  # a file has it whole, as `sha256sum --check` reads it
        shown = f"{digest[: max(8, room - 1)]}…" if cut else digest
        console.print(f"{shown}  {name}", highlight=False, soft_wrap=True)
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


def show_speed(result: SpeedResult, directory: str | None) -> None:
    """What was measured, and what was gained."""
    console = terminal()
    for table in speed_tables(result):
        print_table(table, console)
    for sentence in result.sentences:
        console.print(sentence, highlight=False)
    if directory:
        console.print(f"speed: {directory}", highlight=False, soft_wrap=True)


def show_rotation(result: RotateResult) -> None:
    """What the rotation did, how far its rounding moves logits, and where the model is."""
    console = terminal()
    console.print(
        f"entropy of importance {result.entropy_before:,.0f} -> {result.entropy_after:,.0f} nats"
        f" ({result.change:+.1%}); logits differ by {result.difference:.1e} of their size",
        highlight=False,
    )
    console.print(f"checkpoint: {result.directory}", highlight=False, soft_wrap=True)


def show_shrink(result: ShrinkResult) -> None:
    """What went, what healing brought, and where the model is."""
    console = terminal()
    gone = f"blocks gone: {', '.join(map(str, result.dropped))}; " if result.dropped else ""
    gone += "".join(f"{name} {before:,} -> {after:,}; " for name, (before, after) in result.entries.items())
    console.print(
        f"{gone}{result.parameters_before:,} -> {result.parameters_after:,} parameters"
        f" ({-result.parameters_gone:.1%})",
        highlight=False,
    )
    for block, (before, after) in result.healed.items():
        console.print(f"block {block}: error on held-out samples {before:.4f} -> {after:.4f}", highlight=False)
    for step, loss in result.whole.items():
        before, after = loss["held_out_before"], loss["held_out_after"]
        console.print(f"{step}: loss on held-out samples {before:.4f} -> {after:.4f}", highlight=False)
    console.print(f"checkpoint: {result.directory}", highlight=False, soft_wrap=True)
