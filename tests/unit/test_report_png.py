"""The pictures as PNG: in real colours, the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
from autoprune.report.plots import perplexity_bars
from autoprune.report.png import DOTS_PER_INCH, to_png
from autoprune.report.svg import LIGHT, UNITS_PER_INCH
from autoprune.report.views import texts_of, variants_of
from matplotlib.image import imread
from test_report_samples import row, sample_rows

STAND_INS = 6  # stand-in colours are darker than this in every channel; no colour of the palette is


def picture() -> bytes:
    """Bars of two targets of different height."""
    rows = [*sample_rows(), row("magnitude", "50 %", 30)]
    return to_png(perplexity_bars(variants_of(rows), texts_of(rows)[0]))


def test_colours_are_those_of_the_light_palette() -> None:
    """No stand-in colour is left; what is drawn in a series' colour is there."""
    pixels = (255 * imread(io.BytesIO(picture()), format="png")[..., :3]).round().astype(int)
    assert pixels.shape[1] == 2 * round(460 / UNITS_PER_INCH * DOTS_PER_INCH - 0.5)
    assert not (pixels < STAND_INS).all(axis=-1).any()
    wanted = [int(LIGHT["series1"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (abs(pixels - np.array(wanted)).max(axis=-1) <= 1).sum() > 1000
    assert (pixels[0, 0] == 255).all()


def test_the_same_bytes_every_time() -> None:
    assert picture() == picture()
