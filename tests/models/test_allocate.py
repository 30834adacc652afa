"""Allocation by divergence: blocks pruned alone by hand in the whole model, the total, the same bits in every way."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import tiny_ids, tiny_model
from oracles import divergence as oracle
from oracles.selection import keep_in_rows
from runs import open_store, prune
from torch import Tensor, nn

from autoprune.core.sparsity import Unstructured
from autoprune.errors import NumericsError, RecipeError
from autoprune.model import variants
from autoprune.model.anatomy import examine
from autoprune.model.stream import Place
from autoprune.steps.allocate import Allocate
from autoprune.steps.survey import Survey, SurveyResult
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

RATIO, FEW = 0.6, 2


@dataclass(frozen=True)
class Told(Allocate):
    """Allocation that says what it found."""

    found: list[SurveyResult] = field(default_factory=list)

    def survey(self, survey: Survey) -> SurveyResult:
        """Keeps it."""
        self.found.append(super().survey(survey))
        return self.found[-1]


def told() -> Told:
    return Told(allocation="divergence", divergence_samples=FEW)


@torch.no_grad()
def input_norms(model: nn.Module, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Of every layer, by hooks."""
    squares: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        squares[name] = squares.get(name, 0) + x.double().square().flatten(0, -2).sum(0)

    handles = [model.get_submodule(n).register_forward_pre_hook(lambda _, given, n=n: add(n, given[0])) for n in names]
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}


@torch.no_grad()
def divergence_by_hand(dense: Any, names: list[str], norms: dict[str, Tensor], ratio: float, ids: Tensor) -> float:
    """Mean over all predicted tokens, with these layers alone pruned by Wanda."""
    pruned = copy.deepcopy(dense)
    for name in names:
        weight = pruned.get_submodule(name).weight
        weight.mul_(torch.tensor(keep_in_rows((weight.double().abs() * norms[name]).tolist(), ratio)))
    logits = [model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).tolist() for model in (dense, pruned)]
    following = ids[:, 1:].flatten().tolist()
    losses = [oracle.token(p, q, f)[0] for p, q, f in zip(*logits, following, strict=True)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", ["llama", "gemma4_text"])  # whose last two blocks use keys and values of earlier ones
def test_divergence_is_the_whole_models_with_one_block_pruned(name: str) -> None:
    model, ids, step = tiny_model(name), tiny_ids(6), told()
    dense, blocks = copy.deepcopy(model), examine(model).blocks
    prune(MemoryStore(model), (step, Wanda()), ids, Unstructured(RATIO), batch=2)
    notes = step.found[0].notes
    assert notes["at"] == [RATIO - 0.1, RATIO + 0.1]
    layers = {block.index: [block.full_name(layer) for layer in block.layers] for block in blocks}
    norms = input_norms(dense, [n for names in layers.values() for n in names], ids)
    wanted = [
        [divergence_by_hand(dense, names, norms, ratio, ids[:FEW]) for ratio in notes["at"]]
        for names in layers.values()
    ]
    torch.testing.assert_close(torch.tensor(notes["divergence"]), torch.tensor(wanted), rtol=1e-3, atol=1e-7)
    assert len(set(notes["ratios"])) > 1


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_total_is_exact_and_bits_are_the_same_streamed_resident_and_from_disk(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    written: list[dict[str, Tensor]] = []
    for resident, place in ((False, None), (False, Place("disk", folder=tmp_path)), (True, None)):
        written.append({})
        store, steps = open_store(tmp_path, written[-1], resident=resident), (told(), Wanda())
        results = prune(store, steps, tiny_ids(), Unstructured(RATIO), batch=2, place=place)
    layers = [layer for result in results for layer in result.layers]
    assert sum(la.zeros for la in layers) == sum(la.weights for la in layers) * 3 // 5
    first, *others = written
    assert first and all(first.keys() == other.keys() for other in others)
    assert all(torch.equal(value, other[key]) for key, value in first.items() for other in others)


def test_blocks_without_layers_to_prune_are_passed_over() -> None:
    model, step = tiny_model("llama"), told()
    prune(MemoryStore(model), (step, Wanda()), tiny_ids(), Unstructured(RATIO), ignore=("*.layers.0.*",))
    notes = step.found[0].notes
    assert len(notes["divergence"]) == 1 and notes["ratios"] == pytest.approx([RATIO])


def test_predictions_that_are_not_finite_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shifts = variants.token_shifts

    def spoilt(*given: Any) -> Any:
        found = shifts(*given)
        found[0].kld[0] = torch.nan
        return found

    monkeypatch.setattr(variants, "token_shifts", spoilt)
    with pytest.raises(NumericsError, match=r"model\.layers\.0\S* and its block pruned alone .* are not finite"):
        prune(MemoryStore(tiny_model("llama")), (told(), Wanda()), tiny_ids(), Unstructured(RATIO))


def test_several_processes_are_refused_by_name() -> None:
    Allocate(allocation="owl").check_machine("cpu", 2)
    told().check_machine("cpu", 1)
    with pytest.raises(RecipeError, match=r"--allocation divergence .* without torchrun"):
        told().check_machine("cpu", 2)
