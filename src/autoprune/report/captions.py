"""What a table's caption says of its numbers' origin: model, calibration, texts and windows, tasks."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from autoprune.results.tidy import Results
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
    pruned = [row for variant in results.variants if not variant.dense for row in variant.rows]
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


def windows(results: Results) -> str:
    """How much of every text was measured on."""
    counts: dict[tuple[str, int], int] = {}
    for row in results.rows:
        counts |= {(p.source, p.seqlen): p.windows for p in row.perplexity}
        for name, shift in row.shifts.items():
            counts.setdefault((name, shift.seqlen), shift.windows)
    said = [
        f"{text.name}, {counts[text.source, text.seqlen]:,} windows of {text.seqlen} tokens" for text in results.texts
    ]
    return f"Text{'s' * (len(said) > 1)}: {'; '.join(said)}." if said else ""


def tasks(results: Results, metric: str | None = None) -> str:
    """Items and examples of every task (that has the metric), and the harness that asked them."""
    found = [row.zeroshot for row in results.rows if row.zeroshot]
    asked = {task.task: task for one in found for task in one.tasks if metric is None or metric in task.metrics}
    if not asked:
        return ""
    said = [
        f"{task.task}, {_plural(task.samples, 'item')}, {_plural(task.num_fewshot, 'example')} before each"
        for task in asked.values()
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


def _plural(count: Any, what: str) -> str:
    return f"an unknown number of {what}s" if count is None else f"{count:,} {what}{'s' * (count != 1)}"


def short_name(word: str) -> str:
    """A hub id as it is, of a path the last part."""
    return PurePosixPath(word).name if word.count("/") > 1 or word.startswith(("/", ".", "~")) else word
