"""Models' speed beside each other as tables and text."""

from __future__ import annotations

from autoprune.results.numbers import decimals, number_text, percent_text
from autoprune.results.speed import EAGER, Figure, SpeedResult, paired
from autoprune.results.table import Column, Table, from_rows, spared, to_text


def weights_table(result: SpeedResult) -> Table:
    """What the models are: weights, and the share of them that is zero."""
    models = result.models
    return Table(
        (
            Column("model", tuple(m.model for m in models), words=True),
            Column("weights", tuple(f"{m.weights:,}" for m in models)),
            Column("zeros", tuple(percent_text(m.share_of_zeros, 1) for m in models)),
            Column("dtype", tuple(m.dtype for m in models), words=True),
        )
    )


def speed_table(result: SpeedResult) -> Table:
    """Every figure, one model below the other: its median, and the ratio to the first model round by round."""
    rows, breaks = list[tuple[str, ...]](), set[int]()
    lines = [(model, mode, {figure.name: figure for figure in found}) for model, mode, found in result.lines()]
    first = {mode: found for _, mode, found in reversed(lines)}
    for name in lines[0][2]:
        digits = decimals(max(found[name].median for _, _, found in lines if name in found))
        for model, mode, found in lines:
            if name in found:
                # The mode stands first: on a narrow terminal the end of a long name is what is left out.
                label = model.model if mode == EAGER else f"{mode}: {model.model}"
                rows.append((label, *_cells(found[name], first[mode][name], digits)))
        breaks.add(len(rows) - 1)
    heads = ("model", "figure", "median", "ratio", "range")
    return Table(
        tuple(spared(from_rows(heads, rows, words=2), {"range": 1})),  # which the sentences tell, too
        frozenset(breaks),
        f"Beside {result.models[0].model}, {result.settings['rounds']} rounds",
    )


def speed_tables(result: SpeedResult) -> list[Table]:
    """All of them, in the order in which they are shown."""
    return [weights_table(result), speed_table(result)]


def speed_text(result: SpeedResult) -> str:
    """The tables one below the other, and what was gained."""
    tables = [f"{table.title}\n{to_text(table)}".lstrip() for table in speed_tables(result)]
    return "\n".join([*tables, *result.sentences])


def _cells(figure: Figure, base: Figure, digits: int) -> tuple[str, ...]:
    """A figure's name, its median, the ratio to the base's, and the ratio's range; of the base itself no ratio."""
    named = (figure.name, number_text(figure.median, digits=digits))
    if figure is base:
        return (*named, "", "")
    ratio = paired(figure.values, base.values)
    return (*named, f"{ratio.median:.2f}", "" if figure.is_size else f"{ratio.low:.2f} to {ratio.high:.2f}")
