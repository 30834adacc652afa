"""Results are called what they are, and no command takes a flag that means nothing to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoprune.cli.main import main
from autoprune.run.labels import DENSE, labels_of
from end_to_end.conftest import Run
from end_to_end.tiny import SEQLEN, Texts


def evaluated(capsys: pytest.CaptureFixture[str], model: Path, texts: Texts, *more: str) -> str:
    assert main(["eval", str(model), "--eval_data", str(texts.heldout), "--seqlen", str(SEQLEN), *more]) == 0
    return capsys.readouterr().out


def test_a_pruned_model_is_not_called_dense(
    capsys: pytest.CaptureFixture[str], run: Run, tiny: Path, texts: Texts, tmp_path: Path
) -> None:
    run(tiny, save_model=tmp_path / "out", prune_barber=True, save_ppl=tmp_path / "ppl")
    assert labels_of(tmp_path / "out") == ("wanda+barber (output1 0.01)", "50 %")
    assert labels_of(tiny) == DENSE
    out = evaluated(capsys, tmp_path / "out", texts, "--save_ppl", str(tmp_path / "ppl"))
    assert "wanda+barber" in out
    assert "dense" not in out
    first, again = (
        json.loads((tmp_path / f"ppl/log_{name}.json").read_text())
        for name in ("wanda+barber-output1-0.01_50pct", "eval_wanda+barber-output1-0.01_50pct")
    )
    assert first["perplexity"][0]["perplexity"] == again["perplexity"][0]["perplexity"]
    assert "dense" in evaluated(capsys, tiny, texts)


@pytest.mark.parametrize(
    "manifest",
    ["", "{}", '{"recipe": 3}', '{"recipe": {"pruning": {"sparsity_ratio": 7}}}', '{"recipe": {"a": {"b": 1}}}'],
)
def test_manifest_that_names_no_recipe(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "autoprune.json").write_text(manifest)
    assert labels_of(tmp_path) == DENSE


@pytest.mark.parametrize(
    "flag", ["--save_model", "--calibration_data", "--nsamples", "--prune_method", "--sparsity_ratio"]
)
def test_eval_takes_no_flag_that_means_nothing_there(
    capsys: pytest.CaptureFixture[str], tiny: Path, flag: str
) -> None:
    assert main(["eval", str(tiny), flag, "1"]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--delete"], ["--save_ppl", "x"], ["--prune_method", "wanda"], ["--memory", "1GB"]]
)
def test_inspect_takes_no_flag_that_means_nothing_there(
    capsys: pytest.CaptureFixture[str], tiny: Path, words: list[str]
) -> None:
    assert main(["inspect", str(tiny), *words]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err
