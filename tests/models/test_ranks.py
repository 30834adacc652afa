"""A run that is shared out among ranks gives what one process gives; every rank sees its own samples only."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from models.configs import tiny_ids, tiny_model
from models.threads import ThreadRanks, on_ranks
from torch import Tensor
from transformers import PreTrainedModel

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import Unstructured
from autoprune.core.statistics import InputNorm
from autoprune.errors import NumericsError
from autoprune.events import BlockResult, Progress
from autoprune.machine.ranks import ALONE, Ranks
from autoprune.model.door import prune_with
from autoprune.model.sharing import share, shared_out
from autoprune.results.outcome import LayerOutcome
from autoprune.steps.allocate import Allocate
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

HALF = Unstructured(0.5)
SAMPLES = 7  # no rank count divides it


@dataclass(frozen=True)
class Outcome:
    """What a rank ends with."""

    weights: dict[str, Tensor]
    results: list[BlockResult]
    samples: int

    @property
    def layers(self) -> list[LayerOutcome]:
        return [layer for result in self.results for layer in result.layers]


def prune(
    model: PreTrainedModel,
    methods: tuple[Step, ...],
    ranks: Ranks = ALONE,
    batch: int = 1,
    ids: Tensor | None = None,
) -> Outcome:
    store = MemoryStore(copy.deepcopy(model))
    ids = tiny_ids(SAMPLES) if ids is None else ids
    results = prune_with(store, methods, HALF, ids, batch=batch, ranks=ranks)
    samples = len(share_of(ids, batch, ranks))
    return Outcome({name: p.detach() for name, p in store.model.named_parameters()}, results, samples)


def share_of(ids: Tensor, batch: int, ranks: Ranks) -> range:
    """The samples of a rank."""
    mine = share(-(-len(ids) // batch), ranks)
    return range(mine.start * batch, min(mine.stop * batch, len(ids)))


def agreement(a: Outcome, b: Outcome) -> float:
    """Share of weights that are zero in both or in neither."""
    same = sum(int(((a.weights[name] != 0) == (b.weights[name] != 0)).sum()) for name in a.weights)
    return same / sum(weight.numel() for weight in a.weights.values())


def identical(a: Outcome, b: Outcome) -> bool:
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


@dataclass(frozen=True)
class Recording(Wanda):
    """Wanda that notes which layers it solves, and by which statistic."""

    solved: dict[str, Tensor] = field(default_factory=dict)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        self.solved.update(
            {p.name: p.statistic.squares.clone() for p in problems if isinstance(p.statistic, InputNorm)}
        )
        return super().solve(problems)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_wanda_has_the_bits_of_one_process(count: int) -> None:
    model, ids = tiny_model("llama"), tiny_ids(28)[:, :23]  # more tokens than layer errors are measured on
    alone, single = Recording(), [Recording() for _ in range(count)]
    expected = prune(model, (alone,), ids=ids)
    for outcome in on_ranks(count, lambda ranks: prune(model, (single[ranks.rank],), ranks, ids=ids)):
        assert identical(outcome, expected)
        assert outcome.layers == expected.layers  # layer errors too: they are measured on the same tokens
    solved = [(name, squares) for method in single for name, squares in method.solved.items()]
    assert sorted(name for name, _ in solved) == sorted(alone.solved)  # every layer by one rank
    assert all(torch.equal(squares, alone.solved[name]) for name, squares in solved)
    assert sum(bool(method.solved) for method in single) == min(count, 4)  # a block has four input groups


def test_magnitude_has_the_bits_of_one_process() -> None:
    model = tiny_model("llama")
    alone = prune(model, (Magnitude(),))
    for outcome in on_ranks(3, lambda ranks: prune(model, (Magnitude(),), ranks)):
        assert identical(outcome, alone)
        assert outcome.layers == alone.layers


@pytest.mark.parametrize("allocation", ["owl", "dlp"])
def test_ratios_of_blocks_are_those_of_one_process(allocation: str) -> None:
    model, methods = tiny_model("llama"), (Allocate(allocation=allocation), Wanda())
    alone = prune(model, methods)
    assert len({layer.zeros / layer.weights for layer in alone.layers}) > 1
    assert all(identical(outcome, alone) for outcome in on_ranks(2, lambda ranks: prune(model, methods, ranks)))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "methods",
    [
        (SparseGPT(),),
        (Wanda(), Barber(prune_granularity="output1", threshold=0.3)),
        (Wanda(), Barber(prune_granularity="block", threshold=0.3)),
        (SparseGPT(), Barber(prune_granularity="layer", threshold=0.3, retain_reconstruction=True)),
        (Magnitude(), Barber(prune_granularity="layer", threshold=0.3)),
    ],
    ids=["sparsegpt", "wanda-barber", "wanda-barber-block", "sparsegpt-barber", "magnitude-barber"],
)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_methods_that_add_in_another_order_agree(name: str, methods: tuple[Step, ...], count: int) -> None:
    model = tiny_model(name)
    alone = prune(model, methods)
    together = on_ranks(count, lambda ranks: prune(model, methods, ranks))
    for outcome in together:
        assert identical(outcome, together[0])
        assert agreement(outcome, alone) >= 0.999
        for mine, theirs in zip(outcome.results, alone.results, strict=True):
            for one, other in zip(mine.sub_blocks, theirs.sub_blocks, strict=True):
                assert math.isclose(one.loss_before, other.loss_before, rel_tol=1e-4)
                assert math.isclose(one.loss_after, other.loss_after, rel_tol=1e-4)


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_judged_by_the_tokens_of_all_ranks(name: str, method: Step) -> None:
    """Three samples on three ranks: an expert gets few tokens, or none, on one of them, and enough on all together."""
    model, ids = tiny_model(name), tiny_ids(3)
    alone = prune(model, (method, Barber(prune_granularity="layer", threshold=0.2)), ids=ids)
    assert {"fallback" in layer.notes for layer in alone.layers if ".experts." in layer.name} == {True, False}
    for outcome in on_ranks(
        3, lambda ranks: prune(model, (method, Barber(prune_granularity="layer", threshold=0.2)), ranks, ids=ids)
    ):
        assert agreement(outcome, alone) >= 0.999
        for mine, theirs in zip(outcome.layers, alone.layers, strict=True):
            assert [mine.notes.get(key) for key in ("fallback", "tokens", "rebuilt")] == [
                theirs.notes.get(key) for key in ("fallback", "tokens", "rebuilt")
            ]
            assert mine.error is not None and theirs.error is not None


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_an_expert_may_be_seen_by_the_last_rank_only(method: Step) -> None:
    """Its input group is unknown to the other ranks."""
    model, ids = tiny_model("mixtral"), tiny_ids(2)[:, :1]
    alone = prune(model, (method,), ids=ids)
    tokens = [
        {layer.name: layer.notes.get("tokens") for layer in run.results[0].layers}
        for run in (prune(model, (method,), ids=ids[:1]), alone)
    ]
    assert any(tokens[0][name] == 0 and tokens[1][name] for name in tokens[1])
    for outcome in on_ranks(2, lambda ranks: prune(model, (method,), ranks, ids=ids)):
        assert agreement(outcome, alone) >= 0.999
        assert [layer.notes.get("tokens") for layer in outcome.layers] == [
            layer.notes.get("tokens") for layer in alone.layers
        ]


@pytest.mark.parametrize("batch", [1, 2])
def test_every_rank_runs_its_share_of_the_samples(batch: int) -> None:
    model = tiny_model("llama")
    ran: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def work(ranks: ThreadRanks) -> int:
        class Counted(MemoryStore):
            def load(self, index: int) -> None:
                if index == 0:
                    ran[ranks.rank].clear()  # what comes before the walk

        store = Counted(copy.deepcopy(model))
        store.anatomy.blocks[1].module.register_forward_pre_hook(lambda _, args: ran[ranks.rank].append(len(args[0])))
        progress: list[Progress] = []
        prune_with(
            store,
            (Wanda(),),
            HALF,
            tiny_ids(SAMPLES),
            batch=batch,
            ranks=ranks,
            emit=lambda e: progress.append(e) if isinstance(e, Progress) else None,
        )
        mine = len(share_of(tiny_ids(SAMPLES), batch, ranks))
        assert {event.total for event in progress} == {-(-mine // batch)}
        return mine

    samples = on_ranks(3, work)
    assert sum(samples) == SAMPLES
    assert max(samples) - min(samples) <= batch
    assert [sum(ran[rank]) for rank in range(3)] == samples  # the last block only observes


def test_numbers_that_go_bad_on_one_rank_end_all_of_them() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("inf")
    ids = tiny_ids(4).clamp(min=6)
    ids[-1, 3] = 5

    def work(ranks: ThreadRanks) -> str:
        with pytest.raises(NumericsError) as caught:
            prune(model, (Wanda(),), ranks, ids=ids)
        return str(caught.value)

    messages = on_ranks(2, work)
    assert messages[0] == messages[1]
    assert "hold NaN or infinity" in messages[0]


@pytest.mark.parametrize(("batches", "count"), [(7, 2), (7, 3), (2, 2), (64, 5)])
def test_shares_are_neighbours_and_even(batches: int, count: int) -> None:
    shares = [share(batches, ThreadRanks(rank, count, [], None)) for rank in range(count)]  # type: ignore[arg-type]
    assert [i for part in shares for i in part] == list(range(batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_dear_units_are_spread_first() -> None:
    ranks = ThreadRanks(0, 2, [], None)  # type: ignore[arg-type]
    assert shared_out(ranks, [1, 1, 6, 5, 1]) == [1, 0, 0, 1, 1]
