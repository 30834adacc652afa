"""`autoprune compare`: the figures of a plain loop over transformers' logits, whatever way the models are held."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune
from autoprune.cli.main import main
from autoprune.evaluation.compare import compare_predictions
from autoprune.events import Event, Notice, Progress, Work
from autoprune.results.comparison import Comparison, comparison_from_json
from autoprune.storage.locate import DEMO
from end_to_end.tiny import BLOCKS, SEQLEN, Texts, tiny_model, tiny_tokenizer

Options = dict[str, Any]


@pytest.fixture(scope="module")
def options(texts: Texts) -> Options:
    return {"eval_data": [texts.heldout], "seqlen": SEQLEN}


@pytest.fixture(scope="module")
def pruned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at half of its weights."""
    folder = tmp_path_factory.mktemp("pruned") / "half"
    autoprune.prune(tiny, prune_method="magnitude", sparsity_ratio=0.5, save_model=folder)
    return folder


@pytest.fixture(scope="module")
def sparser(tiny: Path, pruned: Path) -> Path:
    """Without a manifest that says where it comes from."""
    folder = pruned.with_name("quarter")
    autoprune.prune(tiny, prune_method="magnitude", sparsity_ratio=0.75, save_model=folder)
    (folder / "autoprune.json").unlink()
    return folder


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model fits into memory."""
    monkeypatch.setattr("autoprune.run.compare.fits", lambda *_: False)


@torch.no_grad()
def plainly(dense: Path, pruned: Path, ids: Tensor) -> tuple[dict[str, float], list[tuple[float, ...]]]:
    """Window by window, in float64, by transformers alone: every figure, and by stretches of the window where these
    begin and end, both losses and the divergence.
    """
    models = [AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval() for path in (dense, pruned)]
    found: list[tuple[float, ...]] = []
    for window in ids:
        places = slice(len(window) // 2, len(window) - 1)
        ours, theirs = (model(input_ids=window[None], use_cache=False).logits[0, places].double() for model in models)
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        for i, following in enumerate(window[len(window) // 2 + 1 :].tolist()):
            seen = p[i] > -16
            kld = float((p[i][seen].exp() * (p[i] - q[i])[seen]).sum())
            same = float(ours[i].argmax() == theirs[i].argmax())
            found.append((kld, same, float(p[i, following]), float(q[i, following])))
    kld, same, ours, theirs = torch.tensor(found, dtype=torch.float64).T
    delta, ratio, root = theirs.exp() - ours.exp(), ours - theirs, math.sqrt(len(kld))
    scored = len(found) // len(ids)
    bounds = [scored * i // 8 for i in range(9)] if scored > 8 else list(range(scored + 1))
    by_place = [x.view(len(ids), -1) for x in (-ours, -theirs, kld)]
    stretches = [
        (ids.shape[1] - scored + a, ids.shape[1] - scored + b, *(float(x[:, a:b].mean()) for x in by_place))
        for a, b in pairwise(bounds)
    ]
    shares = torch.tensor([0.5, 0.9, 0.95, 0.99, 0.999, 1.0], dtype=torch.float64)
    figures = {
        "kld": float(kld.mean()),
        "kld_error": float(kld.std()) / root,
        **dict(zip(SPREAD, torch.quantile(kld, shares).tolist(), strict=True)),
        "delta_p": float(delta.mean()),
        "delta_p_error": float(delta.std()) / root,
        "delta_p_rms": float(delta.square().mean().sqrt()),
        "same_top": float(same.mean()),
        "same_top_error": float(same.std()) / root,
        "log_ratio": float(ratio.mean()),
        "log_ratio_error": float(ratio.std()) / root,
        "dense_perplexity": math.exp(-float(ours.mean())),
        "pruned_perplexity": math.exp(-float(theirs.mean())),
    }
    return figures, stretches


def assert_same(found: Comparison, wanted: tuple[dict[str, float], list[tuple[float, ...]]]) -> None:
    """All that a comparison says of one model on one text."""
    (line,) = found.to_pandas().to_dict("records")
    assert {name: line[name] for name in wanted[0]} == pytest.approx(wanted[0], rel=1e-5, abs=1e-5)
    told = {"model", "text", "windows", "seqlen", "tokens"}
    assert set(line) == told | set(wanted[0])
    (shift,) = found.models[0].shifts.values()
    stretches = [dataclasses.astuple(stretch) for stretch in shift.stretches]
    assert len(stretches) == len(wanted[1])
    for ours, theirs in zip(stretches, wanted[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


SPREAD = ("kld_median", "kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_maximum")


def test_demo_model_by_a_plain_loop(tmp_path: Path) -> None:
    autoprune.prune("demo", prune_method="magnitude", sparsity_ratio=0.5, save_model=tmp_path / "pruned")
    text = tmp_path / "short.txt"
    text.write_text((DEMO / "heldout.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    result = autoprune.compare("demo", tmp_path / "pruned", eval_data=text, seqlen=64)
    ids = torch.tensor(
        AutoTokenizer.from_pretrained(DEMO)(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    )
    wanted = plainly(DEMO, tmp_path / "pruned", ids[: len(ids) // 64 * 64].view(-1, 64))
    assert_same(result, wanted)
    (line,) = result.to_pandas().to_dict("records")
    assert line["tokens"] == len(ids) // 64 * 31
    assert line["kld"] > 0.01


def test_tiny_model_by_a_plain_loop(tiny: Path, pruned: Path, texts: Texts, options: Options) -> None:
    ids = torch.tensor(tiny_tokenizer()(texts.heldout.read_text(), verbose=False)["input_ids"])
    wanted = plainly(tiny, pruned, ids[: len(ids) // SEQLEN * SEQLEN].view(-1, SEQLEN))
    assert_same(autoprune.compare(tiny, pruned, **options), wanted)


@pytest.mark.parametrize("batch", [1, 3, 0])
def test_streamed_equals_resident(
    tiny: Path, pruned: Path, options: Options, batch: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = {**options, "batch_size": batch}
    resident = autoprune.compare(tiny, pruned, **options)
    request.getfixturevalue("streamed")
    for more in ({}, {"activations": "disk"}, {"activations": "disk", "save": tmp_path / "place"}):
        assert autoprune.compare(tiny, pruned, **options, **more).models == resident.models
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == [
        "comparison.html",
        "comparison.json",
        "comparison.txt",
    ]


def test_several_models_at_once(tiny: Path, pruned: Path, sparser: Path, options: Options) -> None:
    """Each as if it were alone; the less is left, the further it is."""
    both = autoprune.compare(tiny, [pruned, sparser], **options)
    alone = [autoprune.compare(tiny, model, **options).models[0] for model in (pruned, sparser)]
    assert list(both.models) == alone
    half, quarter = both.to_pandas()["kld"]
    assert 0 < half < quarter


@pytest.mark.parametrize("held", [False, True], ids=["files", "in memory"])
def test_a_model_with_itself(tiny: Path, options: Options, held: bool) -> None:
    others: Options = {"tokenizer": tiny_tokenizer()} if held else {}
    dense, other = (tiny_model(), tiny_model()) if held else (tiny, tiny)
    (line,) = autoprune.compare(dense, other, **options, **others).to_pandas().to_dict("records")
    zeros = ("kld", "kld_error", *SPREAD, "delta_p", "delta_p_error", "delta_p_rms", "log_ratio", "log_ratio_error")
    assert {name: line[name] for name in zeros} == dict.fromkeys(zeros, 0.0)
    assert line["same_top"] == 1.0 and line["dense_perplexity"] == line["pruned_perplexity"]


def test_models_in_memory(tiny: Path, pruned: Path, options: Options) -> None:
    """Mixed with one on disk too, and left in the mode in which they were."""
    wanted = autoprune.compare(tiny, pruned, **options).models[0].shifts
    dense, other = tiny_model().train(), AutoModelForCausalLM.from_pretrained(pruned)
    given = {"tokenizer": tiny_tokenizer(), **options}
    assert autoprune.compare(dense, other, **given).models[0].shifts == wanted
    assert autoprune.compare(dense, pruned, **given).models[0].shifts == wanted
    assert dense.training


def test_blocks_of_a_streamed_model_come_one_at_a_time(
    tiny: Path, pruned: Path, options: Options, streamed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoprune.storage.store import CheckpointStore

    most = 0
    load = CheckpointStore.load

    def counted(self: CheckpointStore, index: int) -> None:
        nonlocal most
        load(self, index)
        most = max(most, sum(self.is_loaded(i) for i in range(BLOCKS)))

    monkeypatch.setattr(CheckpointStore, "load", counted)
    said: list[Event] = []
    autoprune.compare(tiny, pruned, emit=said.append, **options)
    assert most == 1
    phases = {event.phase for event in said if isinstance(event, (Progress, Work))}
    assert {"forward the dense model", "forward half", "comparison heldout.txt"} <= phases


def test_command_line(
    tiny: Path, pruned: Path, texts: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "results"
    asked = [str(tiny), str(pruned), "--eval_data", str(texts.heldout), "--seqlen", str(SEQLEN), "--save", str(place)]
    assert main(["compare", *asked]) == 0
    out = capsys.readouterr().out
    for word in ("KL divergence", "99.9 %", "same top", "ln(ppl ratio)", "half", "heldout.txt (16)", str(place)):
        assert word in out
    result = comparison_from_json(json.loads((place / "comparison.json").read_text()))
    assert result.models == autoprune.compare(tiny, pruned, eval_data=texts.heldout, seqlen=SEQLEN).models
    lines = repr(result).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 120
    assert lines[0] == f"Comparison with {tiny}"
    assert lines[1].strip().startswith("half on heldout.txt (16): divergence ")
    assert "KL divergence" in (place / "comparison.txt").read_text()
    assert main(["compare", *asked, "--quiet"]) == 0  # the same comparison may be written there again
    assert capsys.readouterr().out == ""
    assert main(["compare", *asked[:4], "--seqlen", "8", "--save", str(place)]) == 2
    assert "of another comparison: seqlen was 16 and is 8" in capsys.readouterr().err
    assert main(["compare", *asked[:4], "--seqlen", "8", "--save", str(place), "--overwrite"]) == 0
    assert main(["compare", *asked[:4], "--quiet"]) == 2


def test_a_stopped_run_goes_on(
    tiny: Path, pruned: Path, sparser: Path, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is not measured again, and the result is the same."""
    asked: Options = {"eval_data": [texts.heldout, texts.calibration], "seqlen": SEQLEN}
    whole = autoprune.compare(tiny, [pruned, sparser], **asked)
    calls: list[list[str]] = []

    def stopping(dense: Any, others: Any, windows: Any, source: str, **more: Any) -> Any:
        calls.append([source, *others])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare_predictions(dense, others, windows, source, **more)

    monkeypatch.setattr("autoprune.run.beside.compare_predictions", stopping)
    with pytest.raises(KeyboardInterrupt):
        autoprune.compare(tiny, [pruned, sparser], save=tmp_path, **asked)
    said: list[Event] = []
    assert (
        autoprune.compare(tiny, [pruned, sparser], save=tmp_path, resume=True, emit=said.append, **asked).models
        == whole.models
    )
    assert calls == [["heldout.txt", "half", "quarter"], *[["calibration.txt", "half", "quarter"]] * 2]
    assert "half on heldout.txt: measured before" in [event.text for event in said if isinstance(event, Notice)]
    assert not list(tmp_path.glob("*unfinished*"))


def test_a_budget_changes_no_figure(tiny: Path, pruned: Path, options: Options) -> None:
    said: list[Event] = []
    budgeted = autoprune.compare(tiny, pruned, memory="2GiB", emit=said.append, **options)
    assert budgeted.models == autoprune.compare(tiny, pruned, **options).models
    assert any(isinstance(event, Notice) and event.text.startswith("plan for 2.00 GiB") for event in said)
