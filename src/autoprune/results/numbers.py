"""Numbers as people read them: sensible digits, the same in a column, and NaN or infinity as words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoprune.results.variants import Spread

HUGE = 99_999.5  # numbers from here on are written as powers of ten
MEBIBYTE = 2**20


def number_text(value: float, sd: float | None = None, digits: int | None = None) -> str:
    """So many digits after the point, or four significant ones; ``-12``, ``1.2e+06``, ``18.50 ± 0.71``."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if abs(value) >= HUGE:
        return f"{value:.1e}" if sd is None else f"{value:.1e} ± {sd:.1e}"
    places = decimals(value) if digits is None else digits
    return f"{value:.{places}f}" if sd is None else f"{value:.{places}f} ± {sd:.{places}f}"


def spread_text(spread: Spread | None, digits: int | None = None) -> str:
    """Mean ± deviation; ``-`` for what was not measured."""
    return "-" if spread is None else number_text(spread.mean, spread.sd, digits)


def column_texts(spreads: Sequence[Spread | None]) -> tuple[str, ...]:
    """A column of them with the same digits: two after the point, three where all are below 10, none above 1000."""
    digits = column_digits(spreads)
    return tuple(spread_text(spread, digits) for spread in spreads)


def column_digits(spreads: Sequence[Spread | None]) -> int:
    """Digits after the point that a column of these has."""
    means = [abs(s.mean) for s in spreads if s and s.finite and abs(s.mean) < HUGE]
    return 3 if not means or max(means) < 10 else 0 if min(means) >= 1000 else 2


def nats_texts(spreads: Sequence[Spread | None]) -> tuple[str, ...]:
    """A column of divergences: four digits after the point, more where one would be nothing but zeros."""
    least = min((abs(s.mean) for s in spreads if s and s.finite and s.mean), default=1.0)
    digits = 4 if least >= 1e-3 else min(9, 2 - math.floor(math.log10(least)))
    return tuple(spread_text(spread, digits) for spread in spreads)


def percent_spread_text(spread: Spread | None) -> str:
    """A fraction's mean ± deviation as percentages: ``70.12 ± 0.31 %``; ``-`` for what was not measured."""
    if spread is None:
        return "-"
    return f"{number_text(100 * spread.mean, None if spread.sd is None else 100 * spread.sd, 2)} %"


def percent_text(share: float, digits: int = 2) -> str:
    """A fraction as a percentage: 0.5 is ``50.00 %``."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else number_text(share)


def share_text(share: float) -> str:
    """A fraction that may be tiny, as a percentage with at least two significant digits."""
    value = 100 * share
    return percent_text(share) if value == 0 or value >= 0.1 or not math.isfinite(value) else f"{value:.1e} %"


def change_text(change: Spread | float | None) -> str:
    """A factor as a signed change: 0.9 is ``-10.0 %``; over several seeds as ``-10.0 ± 0.5 %``; empty for None."""
    if change is None:
        return ""
    ratio, sd = (change.mean, change.sd) if isinstance(change, Spread) else (change, None)
    if not math.isfinite(ratio):
        return number_text(ratio)
    if ratio >= 10:
        return f"x{ratio:.3g}"
    percent = f"{100 * (ratio - 1):+.1f}"
    percent = "0.0" if percent in ("+0.0", "-0.0") else percent
    return f"{percent} %" if sd is None else f"{percent} ± {100 * sd:.1f} %"


def error_text(error: float | None) -> str:
    """A relative error with three significant digits; ``-`` where none was measured."""
    if error is None:
        return "-"
    if not math.isfinite(error):
        return number_text(error)
    return f"{error:.4f}" if error == 0 or 1e-3 <= error < 1000 else f"{error:.2e}"


def loss_text(loss: float) -> str:
    """A loss, whose order of magnitude is what matters."""
    return f"{loss:.3e}" if math.isfinite(loss) else number_text(loss)


def points_text(before: float, after: float) -> str:
    """Change between two fractions in percentage points."""
    return f"{100 * (after - before):+.2f} pp"


def seconds_texts(spreads: Sequence[Spread | None]) -> tuple[str, ...]:
    """A column of seconds."""
    longest = max((s.mean for s in spreads if s), default=0.0)
    return tuple(spread_text(s, 2 if longest < 10 else 1 if longest < 1000 else 0) for s in spreads)


def mebibytes_text(size: float | None) -> str:
    """Bytes in MiB; ``-`` where none were measured."""
    return "-" if not size else f"{size / MEBIBYTE:,.0f}" if size >= 10 * MEBIBYTE else number_text(size / MEBIBYTE)


def bytes_text(size: int) -> str:
    """The size of files, as file managers give it: ``2.20 GB``, ``37.5 MB``, ``812 kB``."""
    power = next((power for power in (3, 2) if size >= 1000**power), 1)
    value = size / 1000**power
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {['kB', 'MB', 'GB'][power - 1]}"


def decimals(value: float) -> int:
    """Digits after the point that leave four significant ones."""
    if value == 0:
        return 3
    leading = math.floor(math.log10(abs(value)))
    if round(abs(value), 3 - leading) >= 10 ** (leading + 1):  # 9.99996 becomes 10.00
        leading += 1
    return max(0, 3 - leading)
