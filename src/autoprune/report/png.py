"""The report's pictures as one PNG, for places that show no HTML."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.report.svg import LIGHT, NAMES, UNITS_PER_INCH, Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = 30  # units of height for the title above each picture
DOTS_PER_INCH = 200
PROPERTIES = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def to_png(drawings: Sequence[Drawing]) -> bytes:
    """Pictures side by side, each under its title, in the page's light colours; the same bytes every time.

    The drawings' figures are used up by it.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    parts = []
    for drawing in drawings:
        figure, (width, height) = drawing.figure, drawing.figure.get_size_inches()
        figure.set_size_inches(width, height + TITLE / UNITS_PER_INCH)
        figure.set_dpi(DOTS_PER_INCH)
        figure.set_facecolor(LIGHT["paper"])
        figure.suptitle(drawing.title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=LIGHT["ink"])
        _recolour(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        parts.append(np.asarray(canvas.buffer_rgba()).copy())
    buffer = io.BytesIO()
    tallest = max(len(part) for part in parts)
    parts = [np.pad(part, ((0, tallest - len(part)), (0, 0), (0, 0)), constant_values=255) for part in parts]
    imsave(buffer, np.hstack(parts), format="png", metadata={"Software": None})  # type: ignore[dict-item]
    return buffer.getvalue()


def _recolour(figure: Figure) -> None:
    """Puts colours in the place of the stand-ins, in everything that was drawn."""
    for artist in figure.findobj():
        for name in PROPERTIES:
            if reader := getattr(artist, f"get_{name}", None):
                old = reader()
                if (new := _in_light(old)) is not None:
                    getattr(artist, f"set_{name}")(new)


def _in_light(colour: Any) -> Any:
    """The light palette's colour for a stand-in, or for a list of them; None for what is none."""
    from matplotlib.colors import is_color_like, to_hex

    if is_color_like(colour):
        name = NAMES.get(to_hex(colour))
        return LIGHT[name] if name else None
    several = (
        [_in_light(one) for one in colour] if isinstance(colour, (list, tuple)) or hasattr(colour, "shape") else []
    )
    return several if several and None not in several else None
