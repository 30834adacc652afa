"""`autoprune rotate`: an ordinary checkpoint of the same function, which any recipe prunes, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.cli.main import main
from autoprune.events import Event, Notice, Work
from autoprune.storage.locate import DEMO
from end_to_end.tiny import SEQLEN, Texts, contents, save_tiny, tensors, tiny_model

Options = dict[str, Any]


@pytest.fixture(scope="module")
def options(texts: Texts) -> Options:
    return {"calibration_data": texts.calibration, "nsamples": 8, "seqlen": SEQLEN, "rotate_steps": 10}


@torch.no_grad()
def _logits(directory: Path) -> Tensor:
    ids = torch.randint(0, 100, (2, SEQLEN), generator=torch.Generator().manual_seed(3))
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()(ids).logits.float()


def _gap(one: Path, other: Path) -> float:
    expected = _logits(one)
    return float((_logits(other) - expected).norm() / expected.norm())


@pytest.mark.parametrize("tied", [False, True], ids=["two matrices", "tied"])
def test_the_same_function(tied: bool, tmp_path: Path, options: Options) -> None:
    dense, out, said = (
        save_tiny(tmp_path / "dense", tiny_model(tie_word_embeddings=tied)),
        tmp_path / "out",
        list[str](),
    )
    before = contents(dense)

    def watch(event: Event) -> None:
        said.extend([event.text] if isinstance(event, Notice) else [])

    result = autoprune.rotate(dense, out, emit=watch, **options)
    assert contents(dense) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]
    assert result.directory == out and result.difference < 1e-5 and _gap(dense, out) < 1e-5
    assert result.change < 0
    assert [*result.notices] == said and len(said) == tied
    assert not json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    old, new = tensors(dense), tensors(out)
    assert set(new) == {*old, "lm_head.weight"} and {*new} - {*old} == ({"lm_head.weight"} if tied else set())
    assert all(not torch.equal(new[name], old[name]) for name in old)
    assert all(torch.equal(t, torch.ones_like(t)) for name, t in new.items() if "norm" in name)
    assert {name: t.dtype for name, t in old.items()} == {name: new[name].dtype for name in old}


def test_values_alone(tmp_path: Path, options: Options) -> None:
    """Embeddings stay tied, and nothing is written anew but the two layers."""
    dense, out = save_tiny(tmp_path / "dense", tiny_model(tie_word_embeddings=True)), tmp_path / "out"
    result = autoprune.rotate(dense, out, basis="heads", **options)
    assert result.change < 0 and result.difference < 1e-5 and _gap(dense, out) < 1e-5 and not result.notices
    old, new = tensors(dense), tensors(out)
    assert set(old) == set(new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if "v_proj" in name or "o_proj" in name}
    assert json.loads((out / "autoprune.json").read_text())["rotation"]["basis"] == "heads"
    with pytest.raises(autoprune.RecipeError, match="--rotate_blocks changes nothing with --basis heads"):
        autoprune.rotate(dense, tmp_path / "other", basis="heads", rotate_blocks=2, **options)


def test_both_are_the_one_behind_the_other(tmp_path: Path, tiny: Path, options: Options) -> None:
    """And nothing but attention's two layers differs from the hidden states alone, turned."""
    for basis in ("stream", "both"):
        result = autoprune.rotate(tiny, tmp_path / basis, basis=basis, **options)
        assert result.change < 0 and _gap(tiny, tmp_path / basis) < 1e-5
    autoprune.rotate(tmp_path / "stream", tmp_path / "then", basis="heads", **options)
    stream, both, then = (tensors(tmp_path / name) for name in ("stream", "both", "then"))
    assert {name for name in stream if not torch.equal(stream[name], both[name])} == {
        name for name in stream if "v_proj" in name or "o_proj" in name
    }
    assert all(torch.allclose(both[name], then[name], atol=1e-3) for name in both)


@pytest.mark.parametrize("target", ["0.5", "2:4"])
def test_any_recipe_prunes_it(target: str, tmp_path: Path, tiny: Path, options: Options) -> None:
    turned, out = tmp_path / "turned", tmp_path / "pruned"
    autoprune.rotate(tiny, turned, **options)
    data = {name: options[name] for name in ("calibration_data", "nsamples", "seqlen")}
    result = autoprune.prune(turned, steps="wanda,refit", sparsity=target, save_model=out, **data)
    assert result.summary is not None and result.summary.sparsity == 0.5
    assert main(["verify", str(out), "--model", str(turned)]) == 0
    written = json.loads((out / "autoprune.json").read_text())
    assert "rotation" not in written and written["model"]["name"] == str(turned)
    with pytest.raises(autoprune.OutputError, match="holds the result of another run"):
        autoprune.prune(tiny, steps="wanda", sparsity=target, save_model=turned, resume=True, **data)


def test_what_it_is_called(tmp_path: Path, tiny: Path, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    """A dense model that can be compared with the one that it was; there is nothing in it to verify."""
    out = tmp_path / "turned"
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["rotate", str(tiny), str(out), *flags]) == 0
    printed = capsys.readouterr()
    assert "entropy of importance" in printed.out and f"checkpoint: {out}" in printed.out
    assert main(["verify", str(out)]) == 2
    assert "holds a rotated dense model, in which nothing is pruned" in capsys.readouterr().err
    found = autoprune.compare(tiny, out, eval_data=[options["calibration_data"]], seqlen=SEQLEN)
    (shift,) = found.models[0].shifts.values()
    assert abs(shift.kld.mean) < 1e-6
    assert main(["rotate", str(tiny), str(out), "--quiet", "--overwrite", *flags]) == 0
    assert capsys.readouterr().out == ""


def test_two_runs_give_the_same_bytes(tmp_path: Path, tiny: Path, options: Options) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    for out in runs:
        autoprune.rotate(tiny, out, **options)
    assert contents(runs[0]) == contents(runs[1])
    autoprune.rotate(tiny, tmp_path / "three", seed=1, **options)
    assert contents(tmp_path / "three") != contents(runs[0])


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_turn_too(kind: str, tmp_path: Path, options: Options) -> None:
    changes: Options = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    dense = save_tiny(tmp_path / "dense", tiny_model(kind, **changes))
    autoprune.rotate(dense, tmp_path / "out", **options)
    assert _gap(dense, tmp_path / "out") < 1e-5


def test_bfloat16_and_the_demo_model(tmp_path: Path, options: Options) -> None:
    dense = save_tiny(tmp_path / "dense", tiny_model(dtype=torch.bfloat16))
    result = autoprune.rotate(dense, tmp_path / "out", **options)
    assert 0 < result.difference < 5e-2
    assert all(t.dtype == torch.bfloat16 for t in tensors(tmp_path / "out").values())
    autoprune.rotate("demo", tmp_path / "demo", calibration_data="demo", nsamples=2, seqlen=64, rotate_steps=3)
    assert _gap(DEMO, tmp_path / "demo") < 1e-4


def test_an_architecture_that_can_t_be_rotated(tmp_path: Path, options: Options) -> None:
    dense = save_tiny(tmp_path / "dense", tiny_model("gemma2", head_dim=8))
    with pytest.raises(autoprune.ModelError, match=r"can't be rotated: the norm .* stands behind a sub-block"):
        autoprune.rotate(dense, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_more_than_rounding_is_an_error(
    tmp_path: Path, tiny: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, and what was there stays."""
    autoprune.rotate(tiny, tmp_path / "out", **options)
    before = contents(tmp_path)
    monkeypatch.setattr("autoprune.run.rotate.ROUNDING", {torch.float32: 1e-9})
    with pytest.raises(autoprune.ModelError, match=r"logits differ from the model's by .* nothing was written"):
        autoprune.rotate(tiny, tmp_path / "out", overwrite=True, **options)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"rotate_steps": 0}, "--rotate_steps 0 is too small"),
        ({"rotate_rate": 0.0}, "--rotate_rate 0.0 must be a positive number"),
        ({"rotate_blocks": 0}, "--rotate_blocks 0 is too small"),
        ({"sparsity": "2:4"}, "option 'sparsity' means nothing to rotate"),
    ],
)
def test_bad_choices(wrong: Options, expected: str, tmp_path: Path, tiny: Path, options: Options) -> None:
    with pytest.raises(autoprune.RecipeError, match=expected):
        autoprune.rotate(tiny, tmp_path / "out", **{**options, **wrong})
    assert not [*tmp_path.iterdir()]


def test_bad_places(tmp_path: Path, tiny: Path, options: Options) -> None:
    (tmp_path / "theirs.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(autoprune.OutputError, match="not empty"):
            autoprune.rotate(tiny, tmp_path, overwrite=overwrite, **options)
    with pytest.raises(autoprune.OutputError, match="must stay as it is"):
        autoprune.rotate(tiny, tiny / "inside", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.txt"]


def test_progress(tmp_path: Path, tiny: Path, options: Options) -> None:
    events: list[Event] = []
    autoprune.rotate(tiny, tmp_path / "out", emit=events.append, **options)
    learned = [e for e in events if isinstance(e, Work) and e.phase == "learning the rotation"]
    assert [e.done for e in learned] == [*range(1, 11)] and learned[-1].total == 10
