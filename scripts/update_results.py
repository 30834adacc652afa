"""Writes the tables and the picture of README's results anew, from what `make demo` and `autoprune bench
benchmarks/demo.toml` left.

`make results` runs all three. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from autoprune.report.grid import grid_to_markdown
from autoprune.report.numbers import change_text
from autoprune.report.plots import perplexity_bars
from autoprune.report.png import to_png
from autoprune.report.tables import comparison_grid
from autoprune.report.views import Variant, barber_effect, settings_of, texts_of, variants_of
from autoprune.results.types import EvaluationRow, row_from_json

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "img" / "demo_results.png"
MARKED = re.compile(r"(<!-- results:begin.*?-->\n).*?(<!-- results:end -->)", re.DOTALL)
NOTHING = 0.001  # a change of perplexity by less than a thousandth is none

TEXT = """`make demo` prints this table, from one draw of {demo_windows} calibration windows:

{demo_table}
`autoprune bench benchmarks/demo.toml --jobs 2` makes {seeds} draws of {bench_windows} windows, and tries more settings
of LLM-Barber:

{bench_table}
![Perplexity of every method on the demo model, at 50 % and at 2:4](img/{picture})

*The picture and both tables are made by `make results`, which also runs the two commands. ± is the standard deviation
over the draws.
Settings of LLM-Barber are its granularity and threshold; "update kept" is `--retain_reconstruction`.*

What LLM-Barber does to the perplexity of its first pass here:

{findings}"""


def main() -> int:
    """Returns the exit status: 2 if there is nothing to show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "out/demo", help="where `make demo` wrote")
    parser.add_argument("--bench", type=Path, default=ROOT / "out/bench", help="where `autoprune bench` wrote")
    arguments = parser.parse_args()
    try:
        demo = [
            row_from_json(row) for row in json.loads((arguments.demo / "results.json").read_text(encoding="utf-8"))
        ]
        cells = json.loads((arguments.bench / "results.json").read_text(encoding="utf-8"))
    except OSError as error:
        print(
            f"error: {error}; run `make demo` and `autoprune bench benchmarks/demo.toml` first, or `make results`",
            file=sys.stderr,
        )
        return 2
    if failed := [cell["cell"] for cell in cells if cell["row"] is None]:
        print(f"error: the cell {failed[0]!r} failed; run `autoprune bench` again", file=sys.stderr)
        return 2
    bench = [row_from_json(cell["row"]) for cell in cells]
    page, count = MARKED.subn(
        lambda match: match[1] + section(demo, bench) + match[2], README.read_text(encoding="utf-8")
    )
    assert count == 1, "README has no place for the results"
    README.write_text(page, encoding="utf-8")
    PICTURE.write_bytes(to_png(perplexity_bars(variants_of(bench), texts_of(bench)[0])))
    return 0


def section(demo: Sequence[EvaluationRow], bench: Sequence[EvaluationRow]) -> str:
    """What stands between the marks."""
    seeds = max(len(variant.rows) for variant in variants_of(bench))
    return TEXT.format(
        demo_table=grid_to_markdown(comparison_grid(demo)),
        bench_table=grid_to_markdown(comparison_grid(bench)),
        demo_windows=settings_of(demo[0])["nsamples"],
        bench_windows=settings_of(bench[0])["nsamples"],
        seeds={1: "one draw", 2: "two", 3: "three"}.get(seeds, str(seeds)),
        picture=PICTURE.name,
        findings="".join(findings(bench)),
    )


def findings(rows: Sequence[EvaluationRow]) -> list[str]:
    """One line for every kind of outcome: which settings gain, do nothing, lose, or do now this and now that."""
    variants = variants_of(rows)
    kinds: dict[str, list[str]] = {
        "It gains": [],
        "It changes nothing": [],
        "It loses": [],
        "It depends on the draw": [],
    }
    for variant in variants:
        effect = barber_effect(variant, variants, texts_of(rows))
        if effect is not None:
            words = f"{variant.family} at {variant.target} with {variant.extra}"
            kind = outcome(variant, variants, rows)
            kinds[kind].append(
                words + ("" if kind == "It changes nothing" else f" ({change_text(effect.mean, effect.sd)})")
            )
    return [f"* **{kind}**: {'; '.join(words)}.\n" for kind, words in kinds.items() if words]


def outcome(variant: Variant, variants: Sequence[Variant], rows: Sequence[EvaluationRow]) -> str:
    """What happened in every single draw."""
    texts = texts_of(rows)
    singles = [
        barber_effect(Variant(variant.method, variant.target, variant.extra, (row,)), variants, texts)
        for row in variant.rows
    ]
    changes = [single.mean - 1 for single in singles if single]
    if all(abs(change) < NOTHING for change in changes):
        return "It changes nothing"
    if all(change < 0 for change in changes):
        return "It gains"
    return "It loses" if all(change > 0 for change in changes) else "It depends on the draw"


if __name__ == "__main__":
    sys.exit(main())
