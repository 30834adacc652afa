"""What is decided before long work begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from end_to_end.tiny import CONTEXT, tiny_model, tiny_tokenizer, write_words
from transformers import AutoConfig

from autoprune.core.sparsity import SemiStructured, Unstructured
from autoprune.errors import OutputError, RecipeError
from autoprune.events import Event, Notice, silent
from autoprune.machine.devices import choose_device
from autoprune.recipe.options import ModelOptions
from autoprune.recipe.recipe import Recipe, recipe_from_flat
from autoprune.run.labels import method_label, target_label
from autoprune.run.layout import TOKENS_PER_PASS, batch_size
from autoprune.run.open import context_of, held_model
from autoprune.run.plan import (
    check_apart,
    choose_seqlen,
    make_plan,
    needs_data,
)
from autoprune.run.texts import source_name
from autoprune.steps.table import make_steps


def recipe(**options: Any) -> Recipe:
    return recipe_from_flat({"model": "m", "sparsity_ratio": 0.5, **options})


@pytest.mark.parametrize(
    ("asked", "context", "chosen"),
    [(None, 4096, 2048), (None, 512, 512), (None, None, 2048), (128, 512, 128), (512, 512, 512), (9999, None, 9999)],
)
def test_seqlen(asked: int | None, context: int | None, chosen: int) -> None:
    assert choose_seqlen(recipe(seqlen=asked), context) == chosen


def test_seqlen_beyond_the_context() -> None:
    with pytest.raises(
        RecipeError, match="--seqlen 513 is more than the model's context of 512 tokens; give 512 or less"
    ):
        choose_seqlen(recipe(seqlen=513), 512)


@pytest.mark.parametrize(
    ("model_type", "context"), [("llama", 2048), ("gpt2", 1024), ("opt", 2048), ("gpt_neox", 2048), ("bloom", None)]
)
def test_context(model_type: str, context: int | None) -> None:
    assert context_of(AutoConfig.for_model(model_type)) == context


def test_context_that_is_no_number() -> None:
    assert context_of(SimpleNamespace(max_position_embeddings=-1, n_positions=None, max_seq_len=77)) == 77


@pytest.mark.parametrize(
    ("seqlen", "asked", "batch"),
    [(TOKENS_PER_PASS // 16, 0, 16), (TOKENS_PER_PASS, 0, 1), (TOKENS_PER_PASS + 1, 0, 1), (16, 3, 3), (10_000, 3, 3)],
)
def test_batch(seqlen: int, asked: int, batch: int) -> None:
    assert batch_size(recipe(batch_size=asked), seqlen) == batch


@pytest.mark.parametrize("steps", ["wanda,reconstruct", "wanda,distill", "auto"])
def test_batch_where_a_step_trains_or_judges(steps: str) -> None:
    """An update for every 512 tokens, and enough micro-batches to hold a tenth of a few short windows out."""
    assert [batch_size(recipe(steps=steps), seqlen) for seqlen in (128, 512, 2048)] == [4, 1, 1]
    assert batch_size(recipe(steps=steps, batch_size=16), 128) == 16


def test_which_methods_look_at_data() -> None:
    def looks(**options: Any) -> bool:
        made = recipe(**options)
        return needs_data(made, make_steps(made.steps, made.step_options))

    assert not looks(prune_method="magnitude")
    assert looks(prune_method="magnitude", layer_errors=True)
    assert looks(prune_method="magnitude", prune_barber=True)
    assert looks(prune_method="wanda")
    assert looks(prune_method="sparsegpt")


def test_labels() -> None:
    assert method_label(recipe(prune_method="sparsegpt")) == "sparsegpt"
    assert method_label(recipe(prune_barber=True)) == "wanda+barber (output1 0.01)"
    assert method_label(recipe(prune_barber=True, pruned_model="x")) == "given+barber (output1 0.01)"
    assert [target_label(t) for t in (Unstructured(0.5), Unstructured(0.123), SemiStructured(2, 4), None)] == [
        "50 %",
        "12.3 %",
        "2:4",
        "given",
    ]


def test_name_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert source_name(str(tmp_path / "a.txt")) == "a.txt"
    assert source_name("owner/name") == "owner/name"


def test_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    for word in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(RecipeError, match=f"--device '{word}' can't be used here .*; give cpu, cuda"):
            choose_device(word)


def test_a_process_of_several_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", lambda *_, device: torch.zeros(1))
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")] * 2
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match="--device 'cuda:0' would put all processes on one GPU"):
        choose_device("cuda:0")


@pytest.mark.parametrize("target", ["model", "model/", "model/sub", "./model", "other/../model/a", "link", "link/a"])
@pytest.mark.parametrize("as_pruned", [False, True])
def test_output_inside_an_input(tmp_path: Path, target: str, as_pruned: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model", target_is_directory=True)
    given = (
        {"model": "m", "pruned_model": str(tmp_path / "model"), "prune_barber": True}
        if as_pruned
        else {"model": str(tmp_path / "model")}
    )
    with pytest.raises(OutputError, match="which must stay as it is"):
        check_apart(Path(f"{tmp_path}/{target}"), recipe(**given))


def test_output_beside_or_around_an_input(tmp_path: Path) -> None:
    (tmp_path / "dense/model").mkdir(parents=True)
    for target in ("model", "dense/model-pruned", "dense/models/x", "dense"):
        check_apart(tmp_path / target, recipe(model=str(tmp_path / "dense/model")))


def test_plan(tmp_path: Path) -> None:
    texts = {
        "calibration_data": write_words(tmp_path / "c.txt", 200, 0),
        "eval_data": [write_words(tmp_path / "h.txt", 200, 1)],
    }
    subject = held_model(tiny_model(), tiny_tokenizer(), ModelOptions())
    plan = make_plan(recipe(nsamples=3, ignore=["*.down_proj"], **texts), subject, silent, measure=True)
    assert plan.target == Unstructured(0.5)
    assert plan.seqlen == CONTEXT
    assert plan.calibration is not None
    assert plan.calibration.ids.shape == (3, CONTEXT)
    assert {name: held.ids.shape for name, held in plan.evaluation.items()} == {"h.txt": (200 // CONTEXT, CONTEXT)}
    assert [layer.name for layer in plan.chosen[1]] == [
        layer.name for layer in subject.store.anatomy.blocks[1].layers if layer.name != "mlp.down_proj"
    ]
    assert make_plan(recipe(nsamples=3, **texts), subject, silent, measure=False).evaluation == {}


def test_dense_plan_asks_for_nothing_but_texts_to_measure(tmp_path: Path) -> None:
    text = write_words(tmp_path / "h.txt", 200, 1)
    options = {
        "sparsity_ratio": 0,
        "ignore": ["matches nothing"],
        "prune_method": "sparsegpt",
        "calibration_data": "gone.txt",
    }
    plan = make_plan(
        recipe(eval_data=[text], **options),
        held_model(tiny_model(), tiny_tokenizer(), ModelOptions()),
        silent,
        measure=True,
    )
    assert (plan.steps, plan.target, plan.calibration) == ((), None, None)


def test_notices(tmp_path: Path) -> None:
    def notices(model: Any, **options: Any) -> list[str]:
        seen: list[Event] = []
        texts = {"calibration_data": write_words(tmp_path / "c.txt", 3000, 0)}
        make_plan(
            recipe(nsamples=1, **texts, **options),
            held_model(model, tiny_tokenizer(), ModelOptions()),
            seen.append,
            measure=False,
        )
        return [event.text for event in seen if isinstance(event, Notice)]

    assert notices(tiny_model()) == []
    assert notices(tiny_model(), sparsity_ratio=None, sparsity_type="3:4") == [
        "3:4: at most 3 of every 4 weights stay non-zero (25% sparse)"
    ]
    (note,) = notices(tiny_model("bloom", n_layer=2, n_head=4, max_position_embeddings=None))
    assert "names no context length; windows of 2048 tokens" in note
    assert notices(tiny_model("bloom", n_layer=2, n_head=4, max_position_embeddings=None), seqlen=64) == []


@pytest.mark.parametrize("decodes", [False, True])
def test_a_model_that_sees_what_follows_has_no_perplexity(tmp_path: Path, decodes: bool) -> None:
    """transformers loads it for causal language modelling all the same."""
    words = write_words(tmp_path / "words.txt", 100, 0)
    told: list[Event] = []
    model = tiny_model("bert", is_decoder=decodes)
    chosen = recipe(sparsity_ratio=0, eval_data=str(words), seqlen=16)
    make_plan(chosen, held_model(model, tiny_tokenizer(), ModelOptions()), told.append, measure=True)
    assert any("sees the tokens behind the one that it predicts" in str(event) for event in told) is not decodes
