"""The page in headless Chromium, where there is one: nothing sticks out, no words lie on others, light and dark are
what they say.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from test_report_costs import answered
from test_report_distance import shift
from test_report_samples import row

from autoprune.report.draw import DARK, LIGHT
from autoprune.report.page import render_html
from autoprune.results.types import Cost, EvaluationRow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BLOCK = {"prune_granularity": "block", "threshold": 0.1}
KEPT = {"prune_granularity": "output1", "threshold": 0.01, "retain_reconstruction": True}
SETTINGS: tuple[dict[str, Any], ...] = ({}, BLOCK, KEPT)
# Boxes of words in drawings that cover each other or leave their drawing, and how far the page is wider than the
# window.
MEASURE = """
<script>
document.querySelectorAll("details").forEach(fold => fold.open = true);
const faults = [];
for (const drawing of document.querySelectorAll("svg")) {
  const frame = drawing.getBoundingClientRect(), title = drawing.querySelector("title").textContent;
  const words = [...drawing.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  for (const [i, [word, a]] of words.entries()) {
    const outside = Math.max(frame.left - a.left, a.right - frame.right, frame.top - a.top, a.bottom - frame.bottom);
    if (outside > 1) faults.push([title, word, "sticks out"]);
    for (const [other, b] of words.slice(i + 1)) {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 3) faults.push([title, word, other]);
    }
  }
}
const too_wide = document.documentElement.scrollWidth - window.innerWidth;
const drawings = document.querySelectorAll("svg").length, words = document.querySelectorAll("svg text").length;
document.title = JSON.stringify({faults, too_wide, drawings, words});
</script>
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def full_rows() -> list[EvaluationRow]:
    """Something for every section: long names, two ratios, several settings, seeds, wide ranges, tasks, costs."""
    rows = [row("dense", "dense", 4.24, seed=None)]
    for i, (target, sparsity) in enumerate((("30 %", 0.3), ("70 %", 0.7), ("2:4", 0.5))):
        for j, method in enumerate(("magnitude", "wanda", "sparsegpt")):
            for settings in SETTINGS:
                name = method + "+barber" * bool(settings)
                for seed in (0, 1):
                    value = (5 + seed / 9 + i * 4 ** (3 - j)) * 0.9 ** len(settings)
                    made = row(name, target, value, seed=seed, sparsity=sparsity, **settings)
                    seconds = {"prune": 7.0**j + seed + 3 * len(settings)}
                    moved = {"wikitext2": shift(0.1 * 4.0**i * (j + 1) * 0.9 ** len(settings))}
                    pruning = replace(made.pruning, seconds=seconds)
                    rows.append(replace(made, pruning=pruning, cost=Cost(90.0 + seed, 3 * 2**30), shifts=moved))
    return [answered(r, "1100110011", "111000111") for r in rows]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Calls Chromium with the page, which a script may be added to."""
    place = tmp_path_factory.mktemp("browser")
    page = render_html(full_rows(), title="A title", subtitle="A subtitle", command="autoprune bench " + "long/" * 40)

    def call(*flags: str, script: str = "", width: int = 1200, height: int = 900) -> str:
        (place / "page.html").write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
        fixed = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={place / 'profile'}",
        )
        command = [str(CHROMIUM), *fixed, f"--window-size={width},{height}", *flags, (place / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return call


@pytest.mark.parametrize("width", [1200, 500])
def test_words_stand_clear_of_each_other_and_inside(browse: Callable[..., str], width: int) -> None:
    dom = browse("--dump-dom", script=MEASURE, width=width)
    title = re.search(r"<title>(\{.*?)</title>", dom)
    assert title
    measured: dict[str, Any] = json.loads(unescape(title[1]))
    assert measured["faults"] == []
    assert measured["too_wide"] <= 0
    assert measured["drawings"] > 10
    assert measured["words"] > 250


@pytest.mark.parametrize(("scheme", "palette"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
def test_colours_follow_the_reader(
    browse: Callable[..., str], tmp_path: Path, scheme: int, palette: dict[str, str]
) -> None:
    """A screenshot has the palette's desk, paper, ink and series, and is far from one colour."""
    browse(f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={tmp_path / 'page.png'}", height=3000)
    pixels = (
        (255 * imread(io.BytesIO((tmp_path / "page.png").read_bytes()), format="png")[..., :3]).round().astype(int)
    )
    colours = [
        tuple(int(palette[name][i : i + 2], 16) for i in (1, 3, 5))
        for name in ("desk", "paper", "ink", "series0", "series1", "series2")
    ]
    for colour in colours:
        assert (abs(pixels - colour).max(axis=-1) <= 1).sum() > 20, colour
    assert tuple(pixels[0, 0]) == colours[0]
