"""Kills runs of Wanda + LLM-Barber on the shipped model again and again, resumes them, and compares with a run that
nobody killed.

``python scripts/kill_and_resume.py`` does 20 kills by SIGKILL: most at a moment drawn at random between a run's first
word and its end, every third at the sight of a draft (``*.writing``), which is in the middle of a write. Every start
has ``--resume``. A run that ends before it is killed is compared, and the next one begins anew. Exit status 1 if any
file or perplexity differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (
    "--model demo --calibration_data demo --nsamples 128 --seqlen 128 --sparsity_ratio 0.5 --prune_method wanda"
    " --prune_barber"
)
BARBER = "--prune_granularity layer --threshold 0.1"
HELDOUT = ROOT / "src" / "autoprune" / "demo" / "heldout.txt"
TEXTS, CHARACTERS = 3, 8000  # texts for perplexity, so that there is something to be stopped between, and their length
AIMED = 3  # every third kill waits for a draft: the n-th one, n drawn up to ...
DRAFTS = 6
SIGHT = 0.0005  # seconds between two looks for one


@dataclass(frozen=True)
class Kill:
    """What a killed run left."""

    after: float  # seconds after the run's first word
    phase: str  # what it did, by its own last word
    blocks: int  # finished so far
    drafts: int  # files in the middle of being written


class Place:
    """Where one run writes: the checkpoint, its unfinished neighbour, and the perplexities."""

    def __init__(self, folder: Path, name: str) -> None:
        self.model, self.perplexity, self.log = folder / name, folder / f"{name}-ppl", folder / f"{name}.log"
        self.partial = folder / f".{name}.autoprune-partial"

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """A run of ``main.py``."""
        texts = ",".join(str(path) for path in sorted(self.model.parent.glob("text-*.txt")))
        places = ["--save_model", str(self.model), "--save_ppl", str(self.perplexity), "--eval_data", texts]
        given = [*RECIPE.split(), *BARBER.split(), *places, *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "main.py"), *given], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def clear(self) -> None:
        """Nothing is there any more."""
        for path in (self.model, self.partial, self.perplexity):
            shutil.rmtree(path, ignore_errors=True)

    def drafts(self) -> set[tuple[str, int]]:
        """Files in the middle of being written, by name and inode; a killed run leaves them to the next one, which
        removes them.
        """
        found = set()
        for path in self.partial.glob("*.writing"):
            with contextlib.suppress(FileNotFoundError):  # it got its name meanwhile
                found.add((path.name, path.stat().st_ino))
        return found

    def speaks(self) -> bool:
        """Whether the run has said anything: then torch is imported and work begins."""
        return self.log.stat().st_size > 0

    def blocks(self) -> int:
        """Blocks that are finished."""
        return len(list(self.partial.glob("journal-block-*.json")))

    def phase(self) -> str:
        """The last thing that the run said."""
        said = [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.strip()]
        return said[-1].split(":")[0] if said else "starting"

    def results(self) -> dict[str, object]:
        """Every file of the checkpoint, and the perplexities."""
        found: dict[str, object] = {
            str(path.relative_to(self.model)): path.read_bytes() for path in self.model.rglob("*") if path.is_file()
        }
        for path in self.perplexity.glob("*.json"):
            rows = json.loads(path.read_text(encoding="utf-8"))["perplexity"]
            found |= {f"perplexity of {row['source']}": row["perplexity"] for row in rows}
        return found


def kill(place: Place, moment: float, draft: int) -> Kill | None:
    """Starts a run and kills it, after a time or, if ``draft`` is not 0, at the sight of that draft; None if it ended
    before.
    """
    old = place.drafts()
    process = place.start("--resume")
    while process.poll() is None and not place.speaks():
        time.sleep(SIGHT)
    began, seen = time.monotonic(), set[tuple[str, int]]()
    while process.poll() is None and (len(seen) < draft if draft else time.monotonic() - began < moment):
        seen |= place.drafts() - old
        time.sleep(SIGHT)
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    if status == 0:
        return None
    if status != -signal.SIGKILL:
        raise SystemExit(f"a resumed run ended with status {status}:\n{place.log.read_text(encoding='utf-8')}")
    return Kill(time.monotonic() - began, place.phase(), place.blocks(), len(place.drafts() - old))


def differences(place: Place, expected: dict[str, object]) -> list[str]:
    """Names of what is not as in the run that nobody killed."""
    found = place.results()
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def torture(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kills, resumes, compares; returns the figures."""
    reference, place = Place(folder, "reference"), Place(folder, "killed")
    reference.clear()
    place.clear()
    process = reference.start()
    while process.poll() is None and not reference.speaks():
        time.sleep(SIGHT)
    began = time.monotonic()
    if process.wait() != 0:
        raise SystemExit(reference.log.read_text(encoding="utf-8"))
    took, expected, rng = time.monotonic() - began, reference.results(), random.Random(seed)
    print(f"uninterrupted: {took:.1f} s after its first word; {len(expected)} files and perplexities")
    done, ends, wrong = list[Kill](), 0, list[str]()
    while len(done) < kills:
        moment, draft = rng.uniform(0, took), rng.randint(1, DRAFTS)
        found = kill(place, moment, draft if len(done) % AIMED == AIMED - 1 else 0)
        if found:
            done.append(found)
            print(
                f"kill {len(done):2}: after {found.after:4.1f} s, {found.blocks} blocks finished, {found.drafts}"
                f" drafts, at: {found.phase}",
                flush=True,
            )
            continue
        ends += 1
        wrong += differences(place, expected)
        place.clear()
    if place.start("--resume").wait() != 0:
        raise SystemExit(place.log.read_text(encoding="utf-8"))
    wrong += differences(place, expected)
    if place.partial.exists():
        wrong.append(place.partial.name)
    return {
        "kills": len(done),
        "in a write": sum(found.drafts > 0 for found in done),
        "by phase": dict(Counter(found.phase for found in done)),
        "resumed runs that ended": ends + 1,
        "compared": len(expected),
        "differences": wrong,
    }


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default="out/kill-and-resume", help="where everything is written (default %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=20, help="how often (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    chosen = parser.parse_args()
    folder = Path(chosen.out)
    folder.mkdir(parents=True, exist_ok=True)
    text = HELDOUT.read_text(encoding="utf-8")
    for i in range(TEXTS):
        (folder / f"text-{i}.txt").write_text(text[i * CHARACTERS : (i + 1) * CHARACTERS], encoding="utf-8")
    report = torture(folder, chosen.kills, chosen.seed)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in report.items():
        print(f"{name}: {value}")
    print("differs" if report["differences"] else "bit-identical")
    return 1 if report["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
