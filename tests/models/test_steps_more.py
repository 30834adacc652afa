"""Every newer step on a tiny model: exact zeros, the same bits twice, the same bits streamed and resident."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from configs import tiny_ids, tiny_model
from runs import open_store, prune
from torch import Tensor

from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.errors import RecipeError
from autoprune.events import BlockResult
from autoprune.model.anatomy import examine
from autoprune.steps.auto import Auto
from autoprune.steps.base import Step
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


def pruned(words: str, target: Target = HALF) -> tuple[dict[str, Tensor], list[BlockResult]]:
    """The model's tensors afterwards, and what was said of its layers."""
    model = tiny_model("llama")
    results = prune(MemoryStore(model), steps_of(words), tiny_ids(8), target, batch=2)
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


def test_earlier_choices_give_the_same_bits() -> None:
    """What was chosen stands in the record, layer by layer; given back in order, it is taken and not tried again."""
    first, results = pruned("auto")
    choices: dict[str, str] = {}
    for result in results:
        for layer in result.layers:
            choices.setdefault(".".join(layer.name.split(".")[:4]), layer.notes["auto"])
    model = tiny_model("llama")
    replay = dataclasses.replace(Auto(), auto_choices=tuple(choices.values()))
    prune(MemoryStore(model), (replay,), tiny_ids(8), batch=2)
    again = model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("words", ["auto", "wanda,reconstruct"])
def test_steps_that_see_all_samples_refuse_several_processes_by_name(words: str) -> None:
    step = steps_of(words)[-1]
    step.check_machine("cpu", 1)
    with pytest.raises(RecipeError, match=step.name):
        step.check_machine("cpu", 2)
