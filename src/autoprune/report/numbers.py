"""Numbers as people read them: sensible digits, and NaN or infinity as words."""

from __future__ import annotations

import math


def perplexity_text(value: float, sd: float | None = None) -> str:
    """Four significant digits, whole numbers from 1000 on, 1.2e+06 when huge; with ``sd`` as ``mean ± sd``."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if abs(value) >= 99_999.5:
        return f"{value:.1e}" if sd is None else f"{value:.1e} ± {sd:.1e}"
    digits = _decimals(value)
    return f"{value:.{digits}f}" if sd is None else f"{value:.{digits}f} ± {sd:.{digits}f}"


def percent_text(share: float, digits: int = 2) -> str:
    """A fraction as a percentage: 0.5 is ``50.00 %``."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else perplexity_text(share)


def share_text(share: float) -> str:
    """A fraction that may be tiny, as a percentage with at least two significant digits."""
    value = 100 * share
    return percent_text(share) if value == 0 or value >= 0.1 or not math.isfinite(value) else f"{value:.1e} %"


def change_text(ratio: float, sd: float | None = None) -> str:
    """A factor as a signed change: 0.9 is ``-10.0 %``; with the factor's ``sd`` as ``-10.0 ± 0.5 %``."""
    if not math.isfinite(ratio):
        return perplexity_text(ratio)
    if ratio >= 10:
        return f"x{ratio:.3g}"
    change = f"{100 * (ratio - 1):+.1f}"
    change = "0.0" if change in ("+0.0", "-0.0") else change
    return f"{change} %" if sd is None else f"{change} ± {100 * sd:.1f} %"


def error_text(error: float | None) -> str:
    """A relative error with three significant digits; ``-`` where none was measured."""
    if error is None:
        return "-"
    if not math.isfinite(error):
        return perplexity_text(error)
    return f"{error:.4f}" if error == 0 or 1e-3 <= error < 1000 else f"{error:.2e}"


def loss_text(loss: float) -> str:
    """A loss, whose order of magnitude is what matters."""
    return f"{loss:.3e}" if math.isfinite(loss) else perplexity_text(loss)


def points_text(before: float, after: float) -> str:
    """Change between two fractions in percentage points."""
    return f"{100 * (after - before):+.2f} pp"


def _decimals(value: float) -> int:
    """Digits after the point that leave four significant ones."""
    if value == 0:
        return 3
    leading = math.floor(math.log10(abs(value)))
    if round(abs(value), 3 - leading) >= 10 ** (leading + 1):  # 9.99996 becomes 10.00
        leading += 1
    return max(0, 3 - leading)
