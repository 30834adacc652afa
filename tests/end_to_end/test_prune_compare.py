"""`--compare`: after pruning, the same distance from the dense model as `autoprune compare` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

import autoprune
from autoprune.cli.main import main
from autoprune.errors import ModelError, RecipeError
from autoprune.events import Event, Notice
from autoprune.results.codec import read_rows
from autoprune.results.comparison import ModelComparison
from end_to_end.tiny import SEQLEN, Texts, tiny_model, tiny_tokenizer

Options = dict[str, Any]


@pytest.fixture(scope="module")
def options(texts: Texts) -> Options:
    return {"prune_method": "magnitude", "sparsity_ratio": 0.5, "eval_data": [texts.heldout], "seqlen": SEQLEN}


@pytest.fixture(scope="module")
def wanted(tiny: Path, options: Options, tmp_path_factory: pytest.TempPathFactory) -> ModelComparison:
    """What `autoprune compare` says of the same."""
    folder = tmp_path_factory.mktemp("wanted") / "pruned"
    autoprune.prune(tiny, save_model=folder, **options)
    (found,) = autoprune.compare(tiny, folder, eval_data=options["eval_data"], seqlen=SEQLEN).models
    return found


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_the_same_figures(
    tiny: Path,
    options: Options,
    wanted: ModelComparison,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: bool,
    streamed: bool,
) -> None:
    if streamed:
        monkeypatch.setattr("autoprune.run.beside.fits", lambda *_: False)
    place = {"save_model": tmp_path / "out", "activations": "disk"} if saved else {}
    result = autoprune.prune(tiny, compare=True, save_ppl=tmp_path / "ppl", **place, **options)
    assert result.row.shifts == wanted.shifts
    assert list(result.row.shifts) == list(result.perplexity) == ["heldout.txt"]
    assert result.comparison is not None
    assert result.comparison.to_pandas()["kld"].item() == wanted.shifts["heldout.txt"].kld.mean > 0
    assert [row.shifts for row in read_rows([tmp_path / "ppl"])] == [wanted.shifts]
    (table,) = (tmp_path / "ppl").glob("log_*.txt")
    assert "KL divergence from" in table.read_text(encoding="utf-8")


def test_on_the_command_line(
    tiny: Path, texts: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: ModelComparison
) -> None:
    """In the terminal; a second run with --resume measures nothing again; `report` has it in all its forms."""
    words = ["--steps", "magnitude", "--sparsity_ratio", "0.5", "--eval_data", str(texts.heldout)]
    words += ["--seqlen", str(SEQLEN), "--compare", "--save_ppl", str(tmp_path / "ppl")]
    assert main(["prune", str(tiny), str(tmp_path / "out"), *words]) == 0
    shown = capsys.readouterr().out
    assert "KL divergence" in shown
    assert "ln(ppl ratio) by place in the window" in shown
    (table,) = (tmp_path / "ppl").glob("log_*.json")
    table.rename(tmp_path / "kept.json")
    assert main(["report", str(tmp_path / "kept.json"), "--format", "csv", "--out", str(tmp_path / "x.csv")]) == 0
    frame = pandas.read_csv(tmp_path / "x.csv")
    shift = wanted.shifts["heldout.txt"]
    assert frame[f"heldout.txt ({SEQLEN}) KL divergence"].item() == pytest.approx(shift.kld.mean, rel=1e-12)
    assert frame[f"heldout.txt ({SEQLEN}) same top"].item() == pytest.approx(shift.same_top.mean, rel=1e-12)
    assert main(["report", str(tmp_path / "kept.json"), "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert "Divergence of single tokens of heldout.txt" in page
    assert "Loss by place in the window, heldout.txt" in page


def test_what_was_measured_before_is_taken_up(tiny: Path, options: Options, tmp_path: Path) -> None:
    """The tables can't be made; the notes beside them have all that a second run needs."""
    place = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
    (tmp_path / "ppl" / "log_magnitude_50pct.json").mkdir(parents=True)
    with pytest.raises(autoprune.errors.OutputError, match="can't write there"):
        autoprune.prune(tiny, compare=True, overwrite=True, **place, **options)
    (tmp_path / "ppl" / "log_magnitude_50pct.json").rmdir()
    told: list[Event] = []
    result = autoprune.prune(tiny, compare=True, resume=True, emit=told.append, **place, **options)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert any("perplexity heldout.txt: measured before" in text for text in said)
    assert any("on heldout.txt: measured before" in text for text in said)
    assert result.row.shifts
    assert not list((tmp_path / "ppl").glob("*unfinished*"))


def test_a_cell_of_a_grid(tiny: Path, options: Options, tmp_path: Path, wanted: ModelComparison) -> None:
    """The dense model has no such column, and the others have."""
    common = {"eval_data": [str(options["eval_data"][0])], "seqlen": SEQLEN, "compare": True}
    grid = {"models": [str(tiny)], "methods": ["magnitude"], "targets": [0.5], "options": common}
    summary = autoprune.benchmark(grid, tmp_path / "grid")
    dense, pruned = summary.rows
    assert dense.shifts == {}
    assert pruned.shifts == wanted.shifts
    assert f"KL divergence, heldout.txt ({SEQLEN})" in summary.tables[0].header
    record = json.loads((tmp_path / "grid" / "results.json").read_text(encoding="utf-8"))
    assert record[1]["row"]["shifts"]["heldout.txt"]["kld"]["mean"] == pruned.shifts["heldout.txt"].kld.mean
    assert "Distance from the dense model" in (tmp_path / "grid" / "report.html").read_text(encoding="utf-8")


def test_where_there_is_nothing_to_compare_with(tiny: Path, options: Options, texts: Texts, tmp_path: Path) -> None:
    """Said before any work."""
    with pytest.raises(RecipeError, match="--compare sets a pruned model beside the dense one, but nothing is pruned"):
        autoprune.prune(tiny, compare=True, **{**options, "sparsity_ratio": 0})
    model = tiny_model()
    before = model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    with pytest.raises(ModelError, match="pruned in memory, and then nothing is left of the dense model"):
        autoprune.prune(model, tokenizer=tiny_tokenizer(), compare=True, **options)
    assert model.state_dict()["model.layers.0.mlp.up_proj.weight"].equal(before)
    with pytest.raises(RecipeError, match=r"--memory .* is not enough: even one window .* comparing 2 models"):
        autoprune.prune(tiny, compare=True, save_model=tmp_path / "out", memory="520MiB", **options)
    assert not (tmp_path / "out").exists()
