"""Every newer step on a tiny model: exact zeros, the same bits twice, the same bits streamed and resident."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from configs import in_bfloat16, tiny_ids, tiny_model
from runs import open_store, prune
from torch import Tensor

from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.core.statistics import CrossGram, InputGram, InputNorm
from autoprune.errors import RecipeError
from autoprune.events import BlockResult
from autoprune.model.anatomy import examine
from autoprune.model.block import Block
from autoprune.model.training import BlockTraining
from autoprune.recipe.recipe import recipe_from_flat, recipe_from_record
from autoprune.run.labels import method_label
from autoprune.steps.auto import Auto
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.options import AutoOptions, BarberOptions, SwapsOptions
from autoprune.steps.swaps import Swaps
from autoprune.steps.table import make_steps
from autoprune.storage.store import MemoryStore

HALF, TWO_FOUR = Unstructured(0.5), SemiStructured(2, 4)
RECIPES = (
    "ria", "alps", "admm", "auto", "mixed,wanda", "wanda,swaps", "wanda,refit", "wanda,reconstruct",
    "wanda,swaps,barber",
)  # fmt: skip
by_recipe = pytest.mark.parametrize("words", RECIPES)


def steps_of(words: str) -> tuple[Step, ...]:
    return make_steps(words.split(","), {})


def pruned(
    words: str, target: Target = HALF, name: str = "llama", ignore: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], list[BlockResult]]:
    """The model's tensors afterwards, and what was said of its layers."""
    model = tiny_model(name)
    results = prune(MemoryStore(model), steps_of(words), tiny_ids(8), target, batch=2, ignore=ignore)
    return model.state_dict(), results


@by_recipe
@pytest.mark.parametrize("target", [HALF, TWO_FOUR], ids=str)
def test_zeros_are_exact_and_two_runs_give_the_same_bits(words: str, target: Target) -> None:
    (once, results), (twice, again) = pruned(words, target), pruned(words, target)
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert results == again
    for block in examine(tiny_model("llama")).blocks:
        for layer in block.layers:
            weight = once[f"{block.full_name(layer)}.weight"]
            assert 2 * int((weight == 0).sum()) == weight.numel()
            if target == TWO_FOUR:
                assert count_violations(weight != 0, TWO_FOUR) == 0


@by_recipe
def test_half_precision_and_experts_to_whom_hardly_any_token_went(words: str) -> None:
    """Two samples of 24 tokens for four experts, two for each token: some have no statistic of their own."""
    model = in_bfloat16(tiny_model("mixtral"))
    results = prune(MemoryStore(model), steps_of(words), tiny_ids(2), TWO_FOUR, batch=1)
    layers = [layer for result in results for layer in result.layers]
    assert any("tokens" in layer.notes for layer in layers) and all(2 * la.zeros == la.weights for la in layers)
    for block in examine(model).blocks:
        for layer in block.layers:
            assert layer.matrix.dtype == torch.bfloat16 and bool(torch.isfinite(layer.matrix).all())
            assert count_violations(layer.matrix != 0, TWO_FOUR) == 0


@by_recipe
def test_streamed_equals_resident(words: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    written: list[dict[str, Tensor]] = []
    for resident in (False, True):
        written.append({})
        prune(open_store(tmp_path, written[-1], resident=resident), steps_of(words), tiny_ids(8), batch=2)
    streamed, whole = written
    assert streamed and streamed.keys() == whole.keys()
    assert all(torch.equal(streamed[name], whole[name]) for name in streamed)


def test_reconstruction_is_never_worse_on_held_out_samples() -> None:
    _, results = pruned("wanda,reconstruct")
    notes = [layer.notes for result in results for layer in result.layers]
    assert all(note["held_out_after"] <= note["held_out_before"] for note in notes)


def test_auto_is_never_worse_on_held_out_samples_than_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same measure, for the block behind the very same pruned ones."""
    heard: dict[int, list[float]] = {}
    loss = Block.loss

    def hear(block: Block, *, held_out: bool) -> float:
        heard.setdefault(block.index, []).append(loss(block, held_out=held_out))
        return heard[block.index][-1]

    monkeypatch.setattr(Block, "loss", hear)
    auto = Auto()
    results = prune(MemoryStore(tiny_model("llama")), (auto,), tiny_ids(10), batch=1)
    tries = len(auto.auto_tries)
    for result, losses in zip(results, heard.values(), strict=True):
        (last,) = {layer.notes["held_out"] for layer in result.layers}
        assert last == losses[-1] <= min(losses[:tries])
        assert max(losses[:tries]) > last, "they differ"
    for (
        words
    ) in auto.auto_tries:  # and against each as a recipe of its own, in the first block, whose inputs are equal
        monkeypatch.setattr(Block, "loss", loss)
        alone = dataclasses.replace(auto, auto_tries=(words,))
        first = prune(MemoryStore(tiny_model("llama")), (alone,), tiny_ids(10), batch=1)[0]
        assert results[0].layers[0].notes["held_out"] <= first.layers[0].notes["held_out"]


def test_auto_takes_no_recipe_whose_loss_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a half-precision block overflows with it."""
    calls: list[float] = []
    loss = Block.loss

    def first_spoilt(block: Block, *, held_out: bool) -> float:
        calls.append(0.0)
        return math.nan if len(calls) == 1 else loss(block, held_out=held_out)

    monkeypatch.setattr(Block, "loss", first_spoilt)
    auto = Auto(auto_tries=("ria", "wanda+refit"))
    result = prune(MemoryStore(tiny_model("llama")), (auto,), tiny_ids(10), batch=1)[0]
    assert "wanda+refit" in {layer.notes["auto"] for layer in result.layers}, "the loss of ria beats nothing"


@pytest.mark.parametrize("words", ["wanda,reconstruct", "mixed,wanda,reconstruct"])
def test_blocks_of_which_nothing_is_pruned_stay_as_they_are(words: str) -> None:
    """Norms and biases too: who ignores a block means it."""
    found, results = pruned(words, ignore=("*.layers.1.*",))
    dense = tiny_model("llama").state_dict()
    assert all(torch.equal(found[name], dense[name]) for name in dense if ".layers.1." in name)
    assert any(not torch.equal(found[name], dense[name]) for name in dense if ".layers.0.input_layernorm" in name)
    assert results[0].trained and not results[1].trained


def test_reconstruction_leaves_ignored_experts_alone_while_it_trains() -> None:
    """They lie in one parameter with those that are trained; the loss must be that of what is written."""
    seen: list[dict[str, Tensor]] = []
    gradients = BlockTraining.gradients

    def watch(training: BlockTraining, values: Mapping[str, Tensor], i: int) -> Mapping[str, Tensor]:
        seen.append({name: value.clone() for name, value in values.items()})
        return gradients(training, values, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockTraining, "gradients", watch)
        pruned("wanda,reconstruct", name="mixtral", ignore=("*.experts.1.*",))
    dense = tiny_model("mixtral").state_dict()
    fused = [name for name, value in seen[0].items() if value.dim() == 3]
    assert fused
    for values in seen[: len(seen) // 2]:  # of block 0
        for name in fused:
            assert torch.equal(values[name][1], dense[f"model.layers.0.{name}"][1])
    assert any(not torch.equal(seen[3][name][0], seen[0][name][0]) for name in fused)


@pytest.mark.parametrize("ignore", [(), ("*.0.mlp.*",)], ids=["equal blocks", "a block with one sub-block"])
def test_earlier_choices_give_the_same_bits(ignore: tuple[str, ...]) -> None:
    """What was chosen stands in the record, layer by layer; given back by name, it is taken and not tried again."""
    first, results = pruned("auto", ignore=ignore)
    choices: dict[str, str] = {}
    for result in results:
        for layer in result.layers:
            choices.setdefault(".".join(layer.name.split(".")[:4]), layer.notes["auto"])
    assert len(choices) == 4 - len(ignore)
    model = tiny_model("llama")
    given = [f"{name}={words}" for name, words in choices.items()]
    replay = dataclasses.replace(Auto(), auto_choices=tuple(given))
    prune(MemoryStore(model), (replay,), tiny_ids(8), batch=2, ignore=ignore)
    again = model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_choices_that_do_not_fit_the_blocks_are_refused_by_name() -> None:
    layers = {"model.layers.0": ["self_attn.q_proj", "mlp.up_proj"], "model.layers.1": ["mlp.up_proj"]}
    Auto(auto_choices=("*.mlp=wanda", "*.self_attn=wanda+refit")).check_layers(layers)
    with pytest.raises(RecipeError, match=r"says nothing of model\.layers\.0\.self_attn; add"):
        Auto(auto_choices=("*.mlp=wanda",)).check_layers(layers)
    with pytest.raises(RecipeError, match=r"\*\.attn=wanda fits no sub-block; they are called model\.layers\.0\.self"):
        Auto(auto_choices=("*=wanda", "*.attn=wanda")).check_layers(layers)
    with pytest.raises(RecipeError, match="is not PATTERN=STEPS"):
        Auto(auto_choices=("wanda",)).check(HALF)


def test_what_is_tried_has_the_users_options_and_needs_what_it_needs() -> None:
    given = {"auto": AutoOptions(("wanda+swaps", "wanda+barber-layer-0.2")), "swaps": SwapsOptions(swap_limit=7)}
    given |= {"barber": BarberOptions(prune_metric="D")}
    (auto,) = make_steps(["auto"], given)
    assert isinstance(auto, Auto)
    swaps, barber = auto.steps_of("wanda+swaps")[1], auto.steps_of("wanda+barber-layer-0.2")[1]
    assert isinstance(swaps, Swaps) and swaps.swap_limit == 7
    assert isinstance(barber, Barber) and (barber.prune_metric, barber.prune_granularity) == ("D", "layer")
    assert auto.needs.also == (InputNorm, InputGram) and auto.needs.gradients
    assert CrossGram in Auto().needs.also and not Auto().needs.gradients
    recipe = recipe_from_flat({"model": "m", "sparsity_ratio": 0.5, "steps": "auto", "swap_limit": 7})
    assert recipe.to_dict()["steps"][0]["swap_limit"] == 7, "the record says so"
    assert recipe_from_record(recipe.to_dict()).to_dict() == recipe.to_dict()
    assert method_label(recipe) == "auto (swap limit 7)"


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_experts_keep_their_dense_weights_as_mixed_target(name: str) -> None:
    mixed, _ = pruned("mixed,wanda", name=name)
    plain, _ = pruned("wanda", name=name)
    block = examine(tiny_model(name)).blocks[-1]
    names = {f"{block.name}.{la.parameter_name}": la.name in block.experts for la in block.layers}
    assert any(names.values()) and not all(names.values())
    for layer, expert in names.items():
        dense = tiny_model(name).state_dict()[layer]
        kept = mixed[layer] != 0
        assert torch.equal(mixed[layer][kept], dense[kept]) is expert, layer
    assert mixed.keys() == plain.keys()


@pytest.mark.parametrize("words", ["auto", "wanda,reconstruct"])
def test_steps_that_see_all_samples_refuse_several_processes_by_name(words: str) -> None:
    step = steps_of(words)[-1]
    step.check_machine("cpu", 1)
    with pytest.raises(RecipeError, match=step.name):
        step.check_machine("cpu", 2)
