"""What a run says at its end of a step that did hardly anything: LLM-Barber where sets are too small to exchange."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from autoprune.steps.barber import enough
from end_to_end.conftest import Run
from end_to_end.tiny import Answer

SAID = re.compile(r"LLM-Barber exchanged ([\d,]+) of ([\d,]+) inverted pairs: .*; --threshold ([\d.]+) would exchange")


def exchanged(answer: Answer) -> tuple[int, int, str]:
    """Exchanged and inverted pairs, and the threshold that is named; the run says it once."""
    ((done, pairs, threshold),) = SAID.findall(answer.err)
    return int(done.replace(",", "")), int(pairs.replace(",", "")), threshold


@pytest.mark.parametrize(
    ("granularity", "first"),
    [("output1", {}), ("input1", {}), ("layer", {"threshold": 0.001}), ("output1", {"sparsity_type": "2:4"})],
)
def test_what_is_named_exchanges_some(
    run: Run, tiny: Path, tmp_path: Path, granularity: str, first: dict[str, object]
) -> None:
    barber = {"prune_barber": True, "prune_granularity": granularity, **first}
    done, pairs, threshold = exchanged(run(tiny, **barber, save_model=tmp_path / "out"))
    assert done == 0 < pairs
    recorded = json.loads((tmp_path / "out/autoprune.json").read_text(encoding="utf-8"))
    assert any("would exchange some" in text for text in recorded["warnings"])
    assert sum(sub["inverted"] for sub in recorded["sub_blocks"]) == pairs
    run(tiny, **{**barber, "threshold": threshold}, save_model=tmp_path / "named")
    after = json.loads((tmp_path / "named/autoprune.json").read_text(encoding="utf-8"))
    assert sum(sub["exchanged"] for sub in after["sub_blocks"]) > 0
    assert not SAID.search(str(after["warnings"]))


def test_next_to_nothing_is_said_too(run: Run, tiny: Path) -> None:
    """Only the fullest rows exchange a pair: far fewer than the share that was asked for."""
    shares = (threshold / 1000 for threshold in range(40, 200, 20))
    answers = (run(tiny, prune_barber=True, threshold=share) for share in shares)
    done, pairs, _ = next(said for said in (exchanged(a) for a in answers if SAID.search(a.err)) if said[0] > 0)
    assert done < 0.02 * pairs


def test_where_much_is_exchanged_nothing_is_said(run: Run, tiny: Path) -> None:
    assert "LLM-Barber exchanged" not in run(tiny, prune_barber=True, threshold=0.5).err
    assert "LLM-Barber exchanged" not in run(tiny).err


@pytest.mark.parametrize("mean", [1, 1.5, 2, 3, 7, 10, 33, 49, 50, 99, 100, 101, 999, 12_345])
def test_enough_is_little_more_than_needed(mean: float) -> None:
    fullest = int(-(-mean // 1))
    assert int(enough(mean) * fullest) >= 1
    assert enough(mean) * mean < 1.11
