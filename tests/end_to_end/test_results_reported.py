"""What a run leaves when it deletes its checkpoint, measures only, or reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import Run
from end_to_end.tiny import (
    SEQLEN,
    Texts,
    contents,
    plain_perplexity,
)


def reported(folder: Path) -> dict[str, Any]:
    """The one JSON file in a folder of reports."""
    (path,) = folder.glob("log_*.json")
    return dict(json.loads(path.read_text()))


def test_delete_removes_what_the_run_wrote(run: Run, tiny: Path, tmp_path: Path) -> None:
    answer = run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "ppl", delete=True)
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ppl"]
    assert f"checkpoint: deleted from {tmp_path / 'out'}" in answer.out
    assert reported(tmp_path / "ppl")["perplexity"][0]["perplexity"] > 1


def test_delete_spares_what_it_did_not_write(run: Run, tiny: Path, tmp_path: Path) -> None:
    run(tiny, save_model=tmp_path / "out")
    (tmp_path / "out/thesis.txt").write_text("three years of work")
    run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "out/ppl", overwrite=True, delete=True)
    assert set(contents(tmp_path / "out")) == {"thesis.txt", "ppl/log_wanda_50pct.txt", "ppl/log_wanda_50pct.json"}


def test_ratio_zero_only_evaluates(run: Run, tiny: Path, texts: Texts, tmp_path: Path) -> None:
    answer = run(tiny, sparsity_ratio=0, save_model=tmp_path / "out", save_ppl=tmp_path / "ppl", delete=True)
    assert sorted(path.name for path in (tmp_path / "ppl").iterdir()) == ["log_dense.json", "log_dense.txt"]
    row = reported(tmp_path / "ppl")
    assert (row["method"], row["sparsity"], row["pruning"]) == ("dense", 0.0, None)
    assert row["perplexity"][0]["perplexity"] == pytest.approx(plain_perplexity(tiny, texts.heldout), rel=1e-12)
    assert not (tmp_path / "out").exists()
    assert "nothing is pruned at ratio 0" in answer.err
    assert "checkpoint" not in answer.out


def test_ratio_zero_measures_even_when_only_save_model_is_given(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert "heldout.txt" in run(tiny, sparsity_ratio=0, save_model=tmp_path / "out").out


def test_report_says_what_was_measured_and_on_what(run: Run, tiny: Path, texts: Texts, tmp_path: Path) -> None:
    run(tiny, save_ppl=tmp_path / "ppl", eval_data=f"{texts.heldout},{texts.calibration}", threshold=0.25, seed=3)
    row = reported(tmp_path / "ppl")
    assert (row["method"], row["target"], row["sparsity"]) == ("wanda", "50 %", 0.5)
    assert [(p["source"], p["seqlen"], p["windows"], p["tokens"]) for p in row["perplexity"]] == [
        ("heldout.txt", SEQLEN, 330 // SEQLEN, 330 // SEQLEN * SEQLEN),
        ("calibration.txt", SEQLEN, 600 // SEQLEN, 600 // SEQLEN * SEQLEN),
    ]
    provenance = row["perplexity"][0]["provenance"]
    assert {"kind": "txt", "file": "heldout.txt", "tokens": 330, "seqlen": SEQLEN}.items() <= provenance.items()
    assert len(provenance["sha256"]) == len(provenance["fingerprint"]) == 64
    assert row["settings"]["calibration"]["seed"] == 3
    lines = (tmp_path / "ppl/log_wanda_50pct.txt").read_text().splitlines()
    assert lines[0].split("  ")[0] == "method"
    assert all(
        word in lines[0] for word in ("actual sparsity", f"heldout.txt ({SEQLEN})", f"calibration.txt ({SEQLEN})")
    )
    assert lines[2].split()[0] == "wanda"
    assert "50.00 %" in lines[2]
    assert len({len(line) for line in lines}) == 1, "columns are not aligned"


def test_texts_of_one_name_are_both_measured(run: Run, tiny: Path, texts: Texts, tmp_path: Path) -> None:
    for folder, text in (("a", texts.heldout), ("b", texts.calibration)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_bytes(text.read_bytes())
    run(tiny, save_ppl=tmp_path / "ppl", eval_data=f"{tmp_path / 'a/text.txt'},{tmp_path / 'b/text.txt'}")
    measured = reported(tmp_path / "ppl")["perplexity"]
    assert len({p["source"] for p in measured}) == len({p["perplexity"] for p in measured}) == 2
