"""What `--memory` reckons with, and the plan that it leads to.

That the counts meet real runs is measured by benchmarks/memory.py.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import save_tiny, tiny_model, write_words
from transformers import PreTrainedModel

import autoprune
from autoprune.errors import RecipeError
from autoprune.events import Event, Notice
from autoprune.model.anatomy import examine
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.run.memory import PROGRAM, Layout, Load, Need, choose_layout, need_of, shape_of
from autoprune.run.open import open_model
from autoprune.run.plan import make_plan
from autoprune.run.sizes import human, parse_memory
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.options import AutoOptions
from autoprune.steps.price import Shape
from autoprune.steps.table import PRICED, make_steps
from autoprune.steps.wanda import Wanda

MIB, GIB = 2**20, 2**30
METHODS = {"+".join(names): make_steps(names, {}) for names in PRICED}
LOAD = Load(samples=128, tokens=2048)
LAYOUT = Layout(4, "cpu")


def shape(model: PreTrainedModel, stored: torch.dtype = torch.float32) -> Shape:
    return shape_of(model, examine(model), stored, moved=False)


@pytest.fixture(scope="module")
def large() -> Shape:
    """LLaMA-7B, by its shape."""
    return Shape(
        4096,
        11008,
        131072000,
        131072000,
        32000,
        202383360,
        135266304,
        2,
        45088768,
        11008**2,
        3 * 4096**2 + 11008**2,
        2,
        2,
        1,
        0,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        ("500MB", 500_000_000),
        (" 1.5 G", 1_500_000_000),
        ("2e9", 2 * 10**9),
        ("7", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "8 gallons", "-1GB", "1.2.3GB", "GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(RecipeError, match="is no size; write for example 8GiB"):
        parse_memory(text)


def test_sizes_for_people() -> None:
    assert human(480 * MIB) == "480 MiB"
    assert human(1.5 * 2**30) == "1.50 GiB"


@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_the_model(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    counted = shape(model)
    table = 128 * 32
    attention, mlp = 2 * 32 * 32 + 2 * 16 * 32, 3 * 64 * 32
    assert counted.block == sum(p.numel() for p in model.model.layers[0].parameters())
    assert (counted.width, counted.widest, counted.vocabulary) == (32, 64, 128)
    assert (counted.outside, counted.head) == (table + 32, 0 if tied else table)
    assert (counted.sub_block, counted.sub_blocks, counted.layer) == (max(attention, mlp), 2, 64 * 32)
    assert (counted.gram, counted.grams) == (64**2, 2 * 32**2 + 2 * 32**2 + 64**2)
    assert (counted.stored, counted.running, counted.copies, counted.heads) == (4, 4, 1, 0)
    assert shape(model.to(torch.bfloat16)).copies == 2, "cast from what is stored"


def test_every_expert_has_a_gram_of_its_own() -> None:
    counted = shape(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=2))
    assert counted.grams == 4 * (32**2 + 64**2) + 2 * 32**2
    assert counted.copies == 3, "stored expert by expert, fused in the model, copied before they are overwritten"


def test_scores_of_attention_count_where_they_are_laid_out(large: Shape) -> None:
    assert shape(tiny_model("gptj", n_embd=32, n_layer=2, n_head=4, rotary_dim=4)).heads == 4
    eager = dataclasses.replace(large, heads=32)
    for name in ("wanda", "wanda+barber"):
        assert need_of(eager, METHODS[name], LAYOUT, LOAD).total > need_of(large, METHODS[name], LAYOUT, LOAD).total


def test_options_that_need_more(large: Shape) -> None:
    def work(method: Step, shape: Shape = large, batch: int = 1) -> int:
        return need_of(shape, (Wanda(), method), Layout(batch, "disk"), LOAD).work

    assert work(Barber("block")) > work(Barber("output1")) + 5 * large.sub_block
    in_float32 = dataclasses.replace(large, running=4, stored=4)
    assert work(Barber("output1", compute_dtype="bfloat16"), in_float32, 8) < work(Barber("output1"), in_float32, 8)
    assert (
        need_of(large, METHODS["magnitude"], LAYOUT, LOAD).hidden
        == need_of(large, METHODS["wanda"], LAYOUT, LOAD).hidden
    ), "--layer_errors"
    assert need_of(large, METHODS["magnitude"], LAYOUT, Load()).hidden == 0


def test_statistics_count_as_long_as_a_step_of_the_pass_is_to_come(large: Shape) -> None:
    """And what a step puts in the dense weights' place, until the block is written."""

    def need(words: str) -> Need:
        return need_of(large, make_steps(words.split(","), {}), Layout(1, "disk"), LOAD)

    grams = 4 * large.grams
    training = need("wanda,reconstruct").work
    assert training > 25 * large.block
    assert need("sparsegpt,reconstruct").work == training, "reconstruct wants no Gram, so none is kept"
    assert need("wanda,refit").work == 4 * max(3 * large.gram, large.gram + 6 * large.layer) + grams
    alone, mixed = need("alps"), need("mixed,alps")
    assert mixed.work == alone.work, "cross Grams go before ALPS begins"
    assert mixed.weights == alone.weights + large.block * large.running
    fixed, tried = need("wanda,refit").work, AutoOptions(("wanda+refit", "mixed+wanda"))
    auto = need_of(large, make_steps(["auto"], {"auto": tried}), Layout(1, "disk"), LOAD).work
    assert auto - fixed - grams - 2 * large.block * 3 == pytest.approx(4 * 2 * large.gram, rel=0.5)


def test_what_makes_a_run_need_more(large: Shape) -> None:
    def total(name: str = "wanda+barber", layout: Layout = LAYOUT, load: Load = LOAD, shape: Shape = large) -> int:
        return need_of(shape, METHODS[name], layout, load).total

    methods = [total("magnitude", load=Load()), total("wanda"), total("sparsegpt")]
    assert all(a < b for a, b in pairwise(methods))
    assert total("wanda") < total("wanda+barber")
    assert total(layout=Layout(4, "disk")) < total(layout=Layout(2, "cpu")) < total() < total(layout=Layout(8, "cpu"))
    assert total("wanda", Layout(4, "cpu", at_once=True)) > total("wanda")
    assert total(load=dataclasses.replace(LOAD, models=2)) - total() == large.stored * (large.outside + large.block)
    assert total(load=dataclasses.replace(LOAD, evaluated=8, evaluated_tokens=2048)) == total(), (
        "evaluation comes after pruning, not beside it"
    )
    assert total("wanda", load=dataclasses.replace(LOAD, evaluated=8000, evaluated_tokens=2048)) > total("wanda")


def test_wide_vocabularies_need_room_for_the_head_and_for_logits(large: Shape) -> None:
    wide = dataclasses.replace(large, vocabulary=256_000, head=256_000 * 4096)
    assert need_of(wide, METHODS["magnitude"], LAYOUT, Load()).phase == "opening the model"
    need = need_of(wide, METHODS["wanda"], LAYOUT, dataclasses.replace(LOAD, evaluated=8, evaluated_tokens=2048))
    assert need.phase == "evaluation"
    assert need.work == 2048 * 256_000 * (4 * 2 + 8)


def test_smaller_batches_come_first_then_the_disk(large: Shape) -> None:
    def chosen(budget: float, **more: Any) -> Layout:
        layout, need = choose_layout(
            large, METHODS["wanda+barber"], LOAD, wanted=LAYOUT, budget=int(budget), **{"fixed_place": False, **more}
        )
        assert need.total <= budget
        return layout

    def needs(batch: int, place: str) -> int:
        return need_of(large, METHODS["wanda+barber"], Layout(batch, place), LOAD).total

    assert chosen(needs(4, "cpu")) == LAYOUT
    assert chosen(needs(4, "cpu") - 1) == Layout(2, "cpu")
    assert chosen(needs(1, "cpu")) == Layout(1, "cpu")
    assert chosen(needs(1, "cpu") - 1) == Layout(4, "disk")
    assert chosen(needs(1, "disk")) == Layout(1, "disk")
    with pytest.raises(
        RecipeError, match=r"even one window at a time with hidden states on disk pruning needs about .* GiB"
    ):
        chosen(needs(1, "disk") - 1)
    with pytest.raises(RecipeError, match="even one window at a time with hidden states on cpu pruning needs"):
        chosen(needs(1, "cpu") - 1, fixed_place=True)


def test_a_model_in_memory_takes_its_part(large: Shape) -> None:
    """And the message names the budget that was given."""
    need = need_of(large, METHODS["wanda"], Layout(1, "disk"), LOAD).total
    budget = {"wanted": LAYOUT, "fixed_place": False, "budget": need + GIB}
    _, found = choose_layout(large, METHODS["wanda"], LOAD, whole=GIB, **budget)
    assert found.total <= need  # batches of one and of two need the same here
    message = rf"--memory {human(need + GIB)} is not enough.*\({human(2 * GIB)} the whole model, "
    with pytest.raises(RecipeError, match=message):
        choose_layout(large, METHODS["wanda"], LOAD, whole=2 * GIB, **budget)


def test_refusals_name_what_needs_most(large: Shape) -> None:
    def refused(methods: tuple[Step, ...], load: Load, words: str, wanted: Layout = LAYOUT) -> None:
        with pytest.raises(RecipeError, match=f"--memory 600 MiB is not enough: even {words} needs about"):
            choose_layout(large, methods, load, wanted=wanted, fixed_place=False, budget=600 * MIB)

    refused((), Load(evaluated=3, evaluated_tokens=2048), "one window at a time with hidden states on disk evaluation")
    together = dataclasses.replace(LAYOUT, at_once=True)
    refused(
        METHODS["wanda"],
        LOAD,
        r"all windows at a time \(--true_sequential\) with hidden states on disk pruning",
        together,
    )


def test_plan_counts_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same budget is enough to prune, and not to evaluate on a long text afterwards."""
    monkeypatch.setattr("autoprune.run.open.RESIDENT_SHARE", 0.0)
    model = save_tiny(tmp_path / "model", tiny_model())
    short, long = write_words(tmp_path / "c.txt", 200, 0), write_words(tmp_path / "h.txt", 60_000, 1)
    options = {
        "model": str(model),
        "sparsity_ratio": 0.5,
        "calibration_data": short,
        "nsamples": 2,
        "batch_size": 2,
        "eval_data": [long],
    }
    options |= {"memory": str(PROGRAM + MIB), "save_model": str(tmp_path / "out")}
    notes: list[Event] = []
    for measure, place in ((False, "cpu"), (True, "disk")):
        recipe = recipe_from_flat(options)
        plan = make_plan(recipe, open_model(recipe, resident=False), notes.append, measure=measure)
        assert plan.layout.activations == place
    assert "hidden states on disk" in next(
        e.text for e in reversed(notes) if isinstance(e, Notice) and e.text.startswith("plan for")
    )


def test_pruning_and_evaluating_under_a_budget_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states on disk, for calibration and for evaluation: the same perplexity."""
    monkeypatch.setattr("autoprune.run.open.RESIDENT_SHARE", 0.0)
    model = save_tiny(tmp_path / "model", tiny_model())
    text, held = write_words(tmp_path / "c.txt", 400, 0), write_words(tmp_path / "h.txt", 20_000, 1)
    options: dict[str, Any] = {
        "sparsity_ratio": 0.5,
        "calibration_data": text,
        "nsamples": 4,
        "batch_size": 1,
        "eval_data": [held],
    }
    free = autoprune.prune(model, save_model=tmp_path / "free", **options)
    tight = autoprune.prune(model, save_model=tmp_path / "tight", memory=str(PROGRAM + MIB), **options)
    assert tight.perplexity == free.perplexity
