"""Distillation, the step on the whole model: its gradients, its guard, and what is written, resumed and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import autoprune
from autoprune.core.sparsity import Unstructured
from autoprune.errors import RecipeError, ShortageError
from autoprune.evaluation.audit import audit
from autoprune.model import training, whole
from autoprune.model.door import prune_with
from autoprune.model.walk import Inputs
from autoprune.model.whole import ModelTraining, TwoModels
from autoprune.run import memory
from autoprune.steps.table import make_steps
from autoprune.storage.journal import Journal
from autoprune.storage.locate import DEMO
from autoprune.storage.manifest import Manifest
from autoprune.storage.store import MemoryStore
from end_to_end.tiny import save_tiny, tensors, tiny_model

RUN: dict[str, Any] = {
    "steps": "wanda,distill",
    "calibration_data": "demo",
    "nsamples": 6,
    "seqlen": 32,
    "batch_size": 1,
    "sparsity_type": "2:4",
    "distill_dtype": "float32",
    "distill_epochs": 1,
}


def dense() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)


def halved(model: Any) -> Any:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layers" in name and p.dim() == 2:
                p.mul_(torch.arange(p.shape[1]) % 2)
    return model


def test_gradients_are_those_of_the_mean_divergence() -> None:
    ids = torch.randint(0, 500, (4, 9), generator=torch.Generator().manual_seed(0))
    own, pruned = dense(), halved(dense())
    names = {n for n, p in own.named_parameters() if "layers" in n and p.dim() == 2}
    blocks = [n for n, _ in own.named_parameters() if "layers" in n]
    values = {n: p.data for n, p in pruned.named_parameters() if n in blocks}
    held = pruned.lm_head.weight.requires_grad_(False)
    store = MemoryStore(pruned)
    inputs = Inputs(4, 9, 2, Inputs.none().place, Inputs.none().calls, Inputs.none().mirror, 4, held_out=0.5)
    both = TwoModels({n: p.data for n, p in own.named_parameters() if n in blocks}, values, names)
    training = ModelTraining(store, ids, inputs, both, "float32", lambda event: None)
    assert training.fitted == range(0, 1)
    found = training.gradients(training.values, 0)
    judged = training.judge(training.values)
    training.restore()

    for name, p in pruned.named_parameters():
        p.requires_grad_(name in blocks)
    with torch.no_grad():
        p_dense = own(ids).logits.softmax(-1)
    terms = p_dense * (p_dense.log() - pruned(ids).logits.log_softmax(-1))
    assert judged == pytest.approx(float(terms[2:].sum(-1).mean().detach()), rel=1e-5)
    terms[:2].sum(-1).mean().backward()
    for name, p in pruned.named_parameters():
        if name in blocks:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6)
    assert not held.requires_grad, "the model's own flags come back"


def test_streamed_and_in_memory_agree_and_verify_knows_what_was_trained(tmp_path: Path) -> None:
    written = autoprune.prune("demo", save_model=tmp_path / "out", **RUN)
    held = autoprune.prune(model := dense(), tokenizer=AutoTokenizer.from_pretrained(DEMO), **RUN)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, p in model.named_parameters():
        assert torch.equal(p, loaded.get_parameter(name)), name
    before, after = dense(), autoprune.prune("demo", **{**RUN, "steps": "wanda"}).model
    assert after is not None
    for name, p in model.named_parameters():
        if "layers" not in name:
            assert torch.equal(p, before.get_parameter(name)), "embeddings and head stay"
        elif p.dim() == 2:
            assert torch.equal(p != 0, after.get_parameter(name) != 0), "the pattern stays"
    assert written.summary is not None and held.summary is not None
    losses = written.summary.whole["distill"]
    assert losses["held_out_after"] < losses["held_out_before"] and losses == held.summary.whole["distill"]
    assert all(layer.error is None for layer in written.summary.layers), "the walk's errors are none of this model"
    assert Manifest.read(tmp_path / "out").summary({}).whole == written.summary.whole
    assert "model.layers.0.input_layernorm.weight" in Manifest.read(tmp_path / "out").trained
    report = audit(tmp_path / "out", DEMO)
    assert report.sound, report.faults
    assert "norms and biases of the blocks were trained" in (tmp_path / "out" / "README.md").read_text(
        encoding="utf-8"
    )


def test_nothing_changes_where_nothing_gets_better(tmp_path: Path) -> None:
    result = autoprune.prune("demo", **{**RUN, "distill_rate": 1e3})
    plain = autoprune.prune("demo", **{**RUN, "steps": "wanda"})
    assert result.model is not None and plain.model is not None and result.summary is not None
    for name, p in plain.model.named_parameters():
        assert torch.equal(p, result.model.get_parameter(name))
    assert result.summary.trained == ()


@pytest.mark.parametrize("where", ["training", "keeping", "putting"])
def test_stopped_and_resumed_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    autoprune.prune("demo", save_model=tmp_path / "whole", **RUN)

    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "training":
            patch.setattr(ModelTraining, "gradients", stops)
        elif where == "keeping":
            patch.setattr(Journal, "mark_finished", stops)
        else:
            patch.setattr(Journal, "put_finished", lambda self: (_half(self), stops()))
        with pytest.raises(KeyboardInterrupt):
            autoprune.prune("demo", save_model=tmp_path / "parts", **RUN)
    autoprune.prune("demo", save_model=tmp_path / "parts", resume=True, **RUN)
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        other = load_file(tmp_path / "parts" / file.name)
        assert all(torch.equal(value, other[name]) for name, value in load_file(file).items())
    for part in ("layers", "whole", "trained"):
        assert Manifest.read(tmp_path / "whole").raw[part] == Manifest.read(tmp_path / "parts").raw[part]


def _half(journal: Journal) -> None:
    """Puts one block in place, as a run that is killed right then."""
    path = sorted(journal.workplace.path.glob("journal-whole-block-*"))[0]
    journal.writer.write_block(0, load_file(path))
    path.unlink()


def test_too_little_memory_is_said_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Free", (), {"available": 2**20})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free)
    with pytest.raises(RecipeError, match=r"distill trains the whole model at once.*1 MiB of memory are free"):
        autoprune.prune("demo", **RUN)


@pytest.mark.parametrize(
    ("steps", "words"),
    [("distill", "goes on with a pattern"), ("wanda,distill,refit", "distill sees the whole pruned model")],
)
def test_it_comes_last(steps: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        autoprune.prune("demo", **{**RUN, "steps": steps})


def test_experts_that_are_ignored_are_not_trained(tmp_path: Path) -> None:
    small = {"num_local_experts": 4, "num_experts_per_tok": 2}
    save_tiny(tmp_path / "dense", tiny_model("mixtral", num_hidden_layers=1, **small))
    run = {**RUN, "calibration_data": torch.randint(0, 100, (6, 16), generator=torch.Generator().manual_seed(0))}
    run |= {"seqlen": 16, "distill_rate": 3e-3, "ignore": ["*.experts.1.*"]}
    result = autoprune.prune(tmp_path / "dense", save_model=tmp_path / "out", **run)
    assert result.summary is not None and "distill" in result.summary.whole and result.summary.trained
    assert not any("experts" in name for name in result.summary.trained), "layers are in the list of layers"
    before, after = tensors(tmp_path / "dense"), tensors(tmp_path / "out")
    for name in before:
        if "experts" in name:
            assert torch.equal(before[name], after[name]) == (".experts.1." in name), name


def test_blocks_that_are_ignored_are_not_trained(tmp_path: Path) -> None:
    """Norms and biases neither, nor are they said to be."""
    save_tiny(tmp_path / "dense")
    run = {**RUN, "calibration_data": torch.randint(0, 100, (6, 16), generator=torch.Generator().manual_seed(0))}
    run |= {"seqlen": 16, "distill_rate": 3e-3, "ignore": ["*.layers.1.*"]}
    result = autoprune.prune(tmp_path / "dense", save_model=tmp_path / "out", **run)
    assert result.summary is not None and result.summary.trained
    assert not any(".layers.1." in name for name in result.summary.trained)
    before, after = tensors(tmp_path / "dense"), tensors(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before if ".layers.1." in name)
    assert not torch.equal(*(t["model.layers.0.input_layernorm.weight"] for t in (before, after)))


def test_nothing_is_rounded_where_nothing_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "dense")
    run = {**RUN, "calibration_data": torch.randint(0, 100, (6, 16), generator=torch.Generator().manual_seed(0))}
    run |= {"seqlen": 16, "distill_rate": 1e3, "dtype": "bfloat16"}
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put_finished", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            autoprune.prune(tmp_path / "dense", save_model=tmp_path / "out", **run)
    resumed = autoprune.prune(tmp_path / "dense", save_model=tmp_path / "out", resume=True, **run)
    assert resumed.summary is not None and resumed.summary.trained == ()
    assert all(layer.error is not None for layer in resumed.summary.layers), "the walk's errors are this model's"
    before, after = tensors(tmp_path / "dense"), tensors(tmp_path / "out")
    assert all(torch.equal(after[name], before[name] * (after[name] != 0)) for name in before)


@pytest.mark.parametrize("step", ["distill", "reconstruct"])
def test_a_model_that_runs_in_one_precision_alone_is_trained_in_it(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(training, "precision", lambda *_: torch.bfloat16)
    monkeypatch.setattr(whole, "precision", lambda *_: torch.bfloat16)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = tiny_model("openai-gpt", **sizes)  # its attention multiplies by a table in float32
    run = {**RUN, "steps": f"wanda,{step}", "seqlen": 16, f"{step}_dtype": "auto", "distill_rate": 3e-3}
    run |= {"calibration_data": torch.randint(0, 100, (6, 16), generator=torch.Generator().manual_seed(0))}
    result = autoprune.prune(model, **run)
    assert result.summary is not None and result.summary.trained
    with pytest.raises(RecipeError, match=r"does not run in bfloat16 .*train it in float32 \(--reconstruct_dtype"):
        autoprune.prune(tiny_model("openai-gpt", **sizes), **{**run, f"{step}_dtype": "bfloat16"})


@pytest.mark.parametrize("held", [True, False], ids=["in memory", "on disk"])
def test_a_precision_that_can_t_be_is_said_before_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    def walks(*_: Any) -> None:
        raise AssertionError("pruned before it was checked")

    monkeypatch.setattr("autoprune.run.prune._prune_blocks", walks)
    model = tiny_model("openai-gpt", n_embd=16, n_layer=2, n_head=2, n_positions=16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    run = {**RUN, "seqlen": 16, "distill_dtype": "bfloat16"}
    run |= {"calibration_data": torch.randint(0, 100, (6, 16), generator=torch.Generator().manual_seed(0))}
    with pytest.raises(RecipeError, match=r"does not run in bfloat16 .*train it in float32"):
        if held:
            autoprune.prune(model, **run)
        else:
            autoprune.prune(save_tiny(tmp_path / "dense", model), save_model=tmp_path / "out", **run)
    assert all(torch.equal(p, before[name]) and p.dtype is torch.float32 for name, p in model.named_parameters())
    assert not (tmp_path / "out").exists()


def test_the_inner_door_does_not_leave_it_out_silently() -> None:
    with pytest.raises(RecipeError, match=r"distill works on the whole model.*use autoprune\.prune"):
        prune_with(MemoryStore(tiny_model()), make_steps(["wanda", "distill"], {}), Unstructured(0.5))


def test_a_failure_leaves_the_model_as_the_walk_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    model = dense()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    monkeypatch.setattr(ModelTraining, "_try", runs_out)
    with pytest.raises(ShortageError):
        autoprune.prune(model, tokenizer=AutoTokenizer.from_pretrained(DEMO), **{**RUN, "distill_dtype": "bfloat16"})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
