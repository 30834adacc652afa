"""A comparison with the dense model as tables and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from autoprune.core.shift import Estimate
from autoprune.results.comparison import Comparison, Flips
from autoprune.results.numbers import number_text, percent_text
from autoprune.results.table import Column, Table, from_rows, spared, to_text

ERRORS = "± is the standard error over tokens."
MCNEMAR = "Shares of the items; p is McNemar's, of so large a difference if both models were equally good."


def divergence_table(result: Comparison) -> Table:
    """The divergence of every model on every text: its mean and how it is spread over the tokens."""
    header = ("model", "text", "mean", "median", "90 %", "95 %", "99 %", "99.9 %", "max")
    rows = []
    for model, text, shift in result.by_text():
        spread = dataclasses.astuple(shift.kld_spread)
        rows.append((model, text, _estimate(shift.kld), *(_nats(value) for value in spread)))
    spares = {"95 %": 6, "99.9 %": 5, "max": 4, "90 %": 3, "99 %": 2}
    columns = spared(from_rows(header, rows, words=2), spares)
    title = f"KL divergence from {result.dense}{_on(result)}, in nats for each token"
    return Table(_told(result, columns), title=title, note=ERRORS)


def tokens_table(result: Comparison) -> Table:
    """What became of the tokens that follow: their probability, the model's first choice, perplexity."""
    header = ("model", "text", "same top", "Δp", "Δp rms", "ln(ppl ratio)", "dense ppl", "ppl")
    rows = []
    for model, text, shift in result.by_text():
        top, delta = shift.same_top, shift.delta_p
        rows.append(
            (
                model,
                text,
                f"{100 * top.mean:.2f} ± {100 * top.error:.2f} %",
                f"{100 * delta.mean:+.2f} ± {100 * delta.error:.2f} %",
                percent_text(shift.delta_p_rms),
                _estimate(shift.log_ratio),
                number_text(shift.dense_perplexity),
                number_text(shift.pruned_perplexity),
            )
        )
    spares = {"Δp": 5, "ln(ppl ratio)": 4, "Δp rms": 3, "dense ppl": 2}
    columns = spared(from_rows(header, rows, words=2), spares)
    title = f"Tokens that follow{_on(result)}, second half of each window"
    return Table(_told(result, columns), title=title, note=ERRORS)


def places_table(result: Comparison) -> Table:
    """ln(ppl ratio) by place in the window: whether a longer context suffers more."""
    shifts = list(result.by_text())
    longest = max((shift.stretches for _, _, shift in shifts), key=len)
    stretches = tuple(f"{stretch.start}-{stretch.stop - 1}" for stretch in longest)
    rows = []
    for model, text, shift in shifts:
        losses = [f"{stretch.pruned_loss - stretch.dense_loss:+.4f}" for stretch in shift.stretches]
        rows.append((model, text, *losses, *("-",) * (len(stretches) - len(losses))))
    between = {name: 4 - i % 2 for i, name in enumerate(stretches[1:-1], start=1)}  # the ends say most
    columns = spared(from_rows(("model", "text", *stretches), rows, words=2), between)
    return Table(_told(result, columns), title=f"ln(ppl ratio) by place in the window{_on(result)}")


def flips_table(result: Comparison) -> Table:
    """Answers that changed."""
    header = ("model", "task", "metric", "items", "changed", "correct → wrong", "wrong → correct", "McNemar's p")
    rows = [(model.model, *_flips(flip)) for model in result.models for flip in model.flips]
    columns = spared(
        from_rows(header, rows, words=3),
        {"items": 5, "wrong → correct": 3, "correct → wrong": 2, "McNemar's p": 1},
        {"correct → wrong": "to wrong", "wrong → correct": "to correct", "McNemar's p": "p"},
    )
    title = f"Answers that are not those of {result.dense}"
    return Table(tuple(columns), title=title, note=MCNEMAR)


def comparison_tables(result: Comparison, *, places: bool = True) -> list[Table]:
    """All tables that have something to show."""
    tables = []
    if any(model.shifts for model in result.models):
        tables = [divergence_table(result), tokens_table(result), *([places_table(result)] if places else [])]
    return [*tables, *([flips_table(result)] if any(model.flips for model in result.models) else [])]


def comparison_text(result: Comparison, *, places: bool = False) -> str:
    """The tables one below the other."""
    return "\n".join(f"{table.title}\n{to_text(table)}" for table in comparison_tables(result, places=places)).rstrip()


def _texts(result: Comparison) -> list[str]:
    return list(dict.fromkeys(text for _, text, _ in result.by_text()))


def _told(result: Comparison, columns: Sequence[Column]) -> tuple[Column, ...]:
    """Without the column of texts where there is one text, which the title names."""
    return tuple(c for c in columns if c.head != "text" or len(_texts(result)) > 1)


def _on(result: Comparison) -> str:
    texts = _texts(result)
    return f" on {texts[0]}" if len(texts) == 1 else ""


def _flips(flip: Flips) -> tuple[str, ...]:
    moved = (flip.correct_to_wrong, flip.wrong_to_correct)
    shares = (percent_text(count / flip.items) for count in moved)
    return (flip.task, flip.metric, str(flip.items), percent_text(flip.share_changed), *shares, f"{flip.p_value:.3g}")


def _estimate(value: Estimate) -> str:
    return f"{_nats(value.mean)} ± {_nats(value.error)}"


def _nats(value: float) -> str:
    """Four digits after the point; small values by their size."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
