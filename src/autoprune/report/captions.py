"""What captions say of a table's numbers: model, calibration, windows, tasks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from autoprune.results.tidy import Results
from autoprune.results.types import EvaluationRow, TaskResult
from autoprune.results.variants import flat_settings, seed_of


def origin(results: Results) -> str:
    """Sentences that every caption has: models and calibration, as far as the records say."""
    return " ".join(filter(None, (_models(results), _calibration(results))))


def _models(results: Results) -> str:
    named = [name for name in results.models if name]
    short = [short_name(name) for name in named]
    names = [brief if short.count(brief) == 1 else name for brief, name in zip(short, named, strict=True)]
    return f"Model{'s' * (len(names) > 1)}: {', '.join(names)}." if names else ""


def _calibration(results: Results) -> str:
    """What was calibrated on, where it is the same for all."""
    pruned = [row for v in results.variants if not v.dense for row in v.rows if _calibrated(row)]
    known = [flat_settings(row) for row in pruned]
    asked = {(s.get("calibration_data"), s.get("nsamples"), s.get("seqlen")) for s in known}
    if not asked or any(None in one for one in asked):
        return ""
    if len(asked) > 1:
        return "Calibration is not the same for all."
    ((source, windows, seqlen),) = asked
    seeds = sorted({str(seed) for row in pruned if (seed := seed_of(row)) is not None})
    drawn = f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""
    return f"Calibration: {short_name(str(source))}, {windows} windows of {seqlen} tokens{drawn}."


def _calibrated(row: EvaluationRow) -> bool:
    """Whether samples were read, as far as the record says: a method that reads none measures no error."""
    layers = row.pruning.layers if row.pruning else ()
    return not layers or any(layer.error is not None for layer in layers)


def windows(results: Results) -> str:
    """How much of every text was measured on."""
    counts: dict[tuple[str, int], set[int]] = {}
    for row in results.rows:
        for p in row.perplexity:
            counts.setdefault((p.source, p.seqlen), set()).add(p.windows)
    compared: dict[tuple[str, int], set[int]] = {}
    for row in results.rows:
        for name, shift in row.shifts.items():
            compared.setdefault((name, shift.seqlen), set()).add(shift.windows)
    counts = compared | counts  # of some texts divergences alone are known
    said = [
        f"{text.name}, {_range(counts[text.source, text.seqlen])} windows of {text.seqlen} tokens"
        for text in results.texts
    ]
    return f"Text{'s' * (len(said) > 1)}: {'; '.join(said)}." if said else ""


def tasks(results: Results, metric: str | None = None) -> str:
    """Items and examples of every task (that has the metric), and the harness that asked them."""
    found = [row.zeroshot for row in results.rows if row.zeroshot]
    asked: dict[str, list[TaskResult]] = {}
    for task in (t for one in found for t in one.tasks if metric is None or metric in t.metrics):
        asked.setdefault(task.task, []).append(task)
    if not asked:
        return ""
    said = [
        f"{name}, {_plural({t.samples for t in same}, 'item')},"
        f" {_plural({t.num_fewshot for t in same}, 'example')} before each"
        for name, same in asked.items()
    ]
    chat = any(one.settings.get("apply_chat_template") for one in found)
    talked = " ".join(
        dict.fromkeys(one.settings["in_chat_template"] for one in found if "in_chat_template" in one.settings)
    )
    put = " All in the chat template." if chat else f" In the chat template: {talked}." if talked else ""
    by = {f"lm-evaluation-harness {one.settings['harness']}" for one in found if "harness" in one.settings}
    return f"Tasks{f' by {min(by)}' if len(by) == 1 else ''}: {'; '.join(said)}.{put}"


def devices(results: Results) -> str:
    """What the runs ran on."""
    names = dict.fromkeys(row.about.device for row in results.rows if row.about)
    return f"Measured on {', '.join(names)}." if names else ""


def _plural(counts: Collection[int | None], what: str) -> str:
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return f"an unknown number of {what}s"
    return f"{_range(known)} {what}{'s' * (set(known) != {1})}"


def _range(counts: Collection[int]) -> str:
    """One count, or the least and the most of several that differ from row to row."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def short_name(word: str) -> str:
    """A hub id as it is, of a path the last part."""
    return PurePosixPath(word).name if word.count("/") > 1 or word.startswith(("/", ".", "~")) else word
