"""The pictures as PNG: in real colours, the same bytes every time."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.image import imread
from test_report_samples import row, sample_rows

from autoprune.report.charts import WIDTH, bars
from autoprune.report.draw import DOTS_PER_INCH, LIGHT, UNITS_PER_INCH, to_png
from autoprune.results.tidy import Results

STAND_INS = 8  # stand-in colours are darker than this in every channel; no colour of the palette is


def picture() -> bytes:
    """Bars of two targets of different height."""
    results = Results(
        [*(r for r in sample_rows() if r.target != "2:4"), row("wanda", "2:4", 30), row("magnitude", "50 %", 30)]
    )
    return to_png(bars(results, results.texts[0]))


def test_colours_are_those_of_the_light_palette() -> None:
    """No stand-in colour is left; what is drawn in a series' colour is there."""
    pixels = (255 * imread(io.BytesIO(picture()), format="png")[..., :3]).round().astype(int)
    assert pixels.shape[1] == 2 * round(WIDTH / UNITS_PER_INCH * DOTS_PER_INCH - 0.5)
    assert not (pixels < STAND_INS).all(axis=-1).any()
    wanted = [int(LIGHT["series0"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (abs(pixels - np.array(wanted)).max(axis=-1) <= 1).sum() > 1000
    assert (pixels[0, 0] == 255).all()


def test_the_same_bytes_every_time() -> None:
    assert picture() == picture()
