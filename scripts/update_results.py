"""Writes the tables and the picture of README's results anew, from what `make demo` and `autoprune bench
benchmarks/demo.toml` left.

`make results` runs all three. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from autoprune.errors import AutoPruneError
from autoprune.report.charts import bars
from autoprune.report.draw import to_png
from autoprune.report.tables import comparison
from autoprune.results.codec import read_rows
from autoprune.results.numbers import change_text
from autoprune.results.table import to_markdown
from autoprune.results.tidy import PERPLEXITY, Results
from autoprune.results.variants import Variant, flat_settings

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
over the draws. In brackets are LLM-Barber's granularity, threshold, and `--retain_reconstruction`.*

What LLM-Barber does to the perplexity of its first pass here:

{findings}"""


def main() -> int:
    """Returns the exit status: 2 if there is nothing to show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "out/demo", help="where `make demo` wrote")
    parser.add_argument("--bench", type=Path, default=ROOT / "out/bench", help="where `autoprune bench` wrote")
    arguments = parser.parse_args()
    try:
        cells = json.loads((arguments.bench / "results.json").read_text(encoding="utf-8"))
        demo, bench = (Results(read_rows([place / "results.json"])) for place in (arguments.demo, arguments.bench))
    except (OSError, AutoPruneError) as error:
        print(
            f"error: {error}; run `make demo` and `autoprune bench benchmarks/demo.toml` first, or `make results`",
            file=sys.stderr,
        )
        return 2
    if failed := [cell["cell"] for cell in cells if cell["row"] is None]:
        print(f"error: the cell {failed[0]!r} failed; run `autoprune bench` again", file=sys.stderr)
        return 2
    page, count = MARKED.subn(
        lambda match: match[1] + section(demo, bench) + match[2], README.read_text(encoding="utf-8")
    )
    assert count == 1, "README has no place for the results"
    README.write_text(page, encoding="utf-8")
    PICTURE.write_bytes(to_png(bars(bench, bench.texts[0])))
    return 0


def section(demo: Results, bench: Results) -> str:
    """What stands between the marks."""
    return TEXT.format(
        demo_table=to_markdown(comparison(demo)),
        bench_table=to_markdown(comparison(bench)),
        demo_windows=flat_settings(demo.rows[0])["nsamples"],
        bench_windows=flat_settings(bench.rows[0])["nsamples"],
        seeds={1: "one draw", 2: "two", 3: "three"}.get(bench.seeds, str(bench.seeds)),
        picture=PICTURE.name,
        findings="".join(findings(bench)),
    )


def findings(results: Results) -> list[str]:
    """One line for every kind of outcome: which settings gain, do nothing, lose, or do now this and now that."""
    kinds: dict[str, list[str]] = {
        "It gains": [],
        "It changes nothing": [],
        "It loses": [],
        "It depends on the draw": [],
    }
    for variant in results.variants:
        before = results.before(variant)
        if before and (effect := results.change(variant, before)):
            words = f"{variant.family} at {variant.target} with {variant.name.partition(' (')[2].rstrip(')')}"
            kind = outcome(results, variant, before)
            kinds[kind].append(words + ("" if kind == "It changes nothing" else f" ({change_text(effect)})"))
    return [f"* **{kind}**: {'; '.join(words)}.\n" for kind, words in kinds.items() if words]


def outcome(results: Results, variant: Variant, before: Variant) -> str:
    """What happened in every single draw."""
    mine, theirs = (results.by_seed(v, PERPLEXITY, results.texts[0].label) for v in (variant, before))
    changes = [mine[seed] / theirs[seed] - 1 for seed in mine if seed in theirs]
    if all(abs(change) < NOTHING for change in changes):
        return "It changes nothing"
    if all(change < 0 for change in changes):
        return "It gains"
    return "It loses" if all(change > 0 for change in changes) else "It depends on the draw"


if __name__ == "__main__":
    sys.exit(main())
