"""The same on a GPU as on the CPU. Skipped where there is none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from configs import tiny_ids, tiny_model
from torch import Tensor

import autoprune
from autoprune.core.exchange import exchange
from autoprune.core.order_statistics import count_true, count_zeros, kth_lowest, lowest_at, zeroed
from autoprune.core.selection import keep_for
from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.model.door import prune_with
from autoprune.model.stream import Place
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.store import CheckpointStore, MemoryStore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
CUDA = torch.device("cuda", 0)


def pruned(store: MemoryStore | CheckpointStore, methods: tuple[Step, ...], target: Target) -> dict[str, Tensor]:
    """Every layer's weights afterwards, on the CPU."""
    prune_with(store, methods, target, tiny_ids(), batch=4, place=Place("device", store.device))
    return {block.full_name(layer): layer.matrix.cpu() for block in store.anatomy.blocks for layer in block.layers}


@pytest.mark.parametrize("target", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
@pytest.mark.parametrize(
    "methods",
    [
        (Magnitude(),),
        (Wanda(),),
        (SparseGPT(),),
        (Wanda(), Barber("output1", 0.2)),
        (SparseGPT(), Barber("output1", 0.2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_patterns_are_those_of_the_cpu(name: str, methods: tuple[Step, ...], target: Target) -> None:
    model = tiny_model(name)
    here, there = (pruned(MemoryStore(copy.deepcopy(model).to(device)), methods, target) for device in ("cpu", CUDA))
    same = torch.cat([((here[layer] != 0) == (there[layer] != 0)).flatten() for layer in here]).float().mean()
    assert same >= 0.999
    for layer in here:
        assert (here[layer] - there[layer]).norm() <= 0.05 * here[layer].norm()


@pytest.mark.parametrize("shape", [(1, 5000), (64, 96), (300, 8)])
def test_order_statistics(shape: tuple[int, int]) -> None:
    scores = torch.randint(50, shape, generator=torch.Generator().manual_seed(0)).float()  # with ties
    places = torch.randint(1, shape[1] + 1, (shape[0],), generator=torch.Generator().manual_seed(1))
    pattern = scores > 20
    assert torch.equal(kth_lowest(scores.to(CUDA), 3).cpu(), kth_lowest(scores, 3))
    assert torch.equal(lowest_at(scores.to(CUDA), places.to(CUDA)).cpu(), lowest_at(scores, places))
    assert torch.equal(zeroed(scores.to(CUDA), pattern.to(CUDA)).cpu(), scores.masked_fill(~pattern, 0))
    assert torch.equal(count_true(pattern.to(CUDA)).cpu(), count_true(pattern)) and count_zeros(
        scores.to(CUDA)
    ) == count_zeros(scores)
    for target in (Unstructured(0.5), SemiStructured(2, 4)):
        for per_row in (True, False):
            assert torch.equal(
                keep_for(scores.to(CUDA), target, per_row=per_row).cpu(), keep_for(scores, target, per_row=per_row)
            )


@pytest.mark.parametrize("granularity", ["block", "layer", "output1", "input1"])
def test_exchange(granularity: str) -> None:
    """Scores are compared by their bits, shifted into the sign on the way: the same on both devices, ties too."""
    generator = torch.Generator().manual_seed(2)
    scores = [torch.randint(40, shape, generator=generator).float().sqrt() for shape in ((64, 96), (32, 64), (300, 8))]
    keep = [torch.rand(s.shape, generator=generator) < 0.5 for s in scores]
    here = exchange(scores, keep, granularity, 0.3, Unstructured(0.5))
    there = exchange([s.to(CUDA) for s in scores], [k.to(CUDA) for k in keep], granularity, 0.3, Unstructured(0.5))
    assert (there.inverted, there.grown, there.dropped) == (here.inverted, here.grown, here.dropped)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there.keep, here.keep, strict=True))


def test_streamed_with_read_ahead_equals_resident(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    written: dict[str, Tensor] = {}
    streamed = CheckpointStore(
        build_skeleton(Checkpoint.open(tmp_path), "auto", CUDA, trust_remote_code=False), resident=False
    )
    streamed.write_to(lambda _, tensors: written.update(tensors), lambda *_: None)
    target = Unstructured(0.5)
    prune_with(streamed, (Wanda(),), target, tiny_ids(), batch=4, place=Place("cpu", CUDA))
    resident = CheckpointStore(
        build_skeleton(Checkpoint.open(tmp_path), "auto", CUDA, trust_remote_code=False), resident=True
    )
    for name, matrix in pruned(resident, (Wanda(),), target).items():
        assert torch.equal(written[f"{name}.weight"], matrix)


@pytest.mark.parametrize("word", ["tf32", "bfloat16"])
def test_lower_precision_changes_little(word: str) -> None:
    model = tiny_model("llama")
    exact, coarse = (
        pruned(
            MemoryStore(copy.deepcopy(model).to(CUDA)),
            (Wanda(), Barber("layer", 0.2, compute_dtype=w)),
            Unstructured(0.5),
        )
        for w in ("float32", word)
    )
    same = torch.cat([((exact[layer] != 0) == (coarse[layer] != 0)).flatten() for layer in exact]).float().mean()
    assert same >= 0.97
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_from_the_front_door(tmp_path: Path) -> None:
    options = {
        "calibration_data": "demo",
        "eval_data": "demo",
        "nsamples": 8,
        "sparsity_ratio": 0.5,
        "prune_barber": True,
    }
    here, there = (autoprune.prune("demo", device=device, **options).perplexity["demo"] for device in ("cpu", "cuda"))
    assert there == pytest.approx(here, rel=0.01)
