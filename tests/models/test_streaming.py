"""A model that is streamed block by block, one that stays in memory, one that was there before: the same bits; hidden
states wherever they live.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from configs import in_bfloat16, tiny_ids, tiny_model
from runs import BARBER, open_store, prune
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from autoprune.core.sparsity import SemiStructured, Target, Unstructured
from autoprune.model.stream import Place, Stream
from autoprune.model.walk import prepare_inputs
from autoprune.steps.base import Step
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import MemoryStore

FIRST = (Magnitude(), Wanda(), SparseGPT())


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model and a mixture of experts, in bfloat16."""
    directory = tmp_path_factory.mktemp(request.param)
    in_bfloat16(tiny_model(request.param)).save_pretrained(directory)
    return directory


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("target", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
@pytest.mark.parametrize("second", [(), (BARBER,)], ids=["alone", "barber"])
@pytest.mark.parametrize("first", FIRST, ids=lambda method: type(method).__name__.lower())
def test_streamed_equals_resident(saved: Path, first: Step, second: tuple[Step, ...], target: Target) -> None:
    if second and isinstance(target, SemiStructured):
        second = (type(BARBER)(threshold=0.2),)  # N:M is exchanged within rows only
    streamed: dict[str, Tensor] = {}
    resident: dict[str, Tensor] = {}
    prune(open_store(saved, streamed), (first, *second), tiny_ids(), target)
    store = open_store(saved, resident, resident=True)
    prune(store, (first, *second), tiny_ids(), target)
    assert same(streamed, resident)
    assert any(
        not torch.equal(tensor, load_file(saved / "model.safetensors")[key]) for key, tensor in streamed.items()
    )


@pytest.mark.parametrize(
    "methods",
    [(Magnitude(),), (Wanda(), BARBER), (SparseGPT(), BARBER)],
    ids=["magnitude", "wanda+barber", "sparsegpt+barber"],
)
def test_a_model_in_memory_equals_its_checkpoint(saved: Path, methods: tuple[Step, ...]) -> None:
    store = open_store(saved, resident=True)
    model = AutoModelForCausalLM.from_pretrained(saved)
    for target in (store, MemoryStore(model)):
        prune(target, methods, tiny_ids())
    assert same(dict(store.model.named_parameters()), dict(model.named_parameters()))


@pytest.mark.parametrize("where", ["device", "disk"])
def test_hidden_states_elsewhere_change_nothing(saved: Path, where: str, tmp_path: Path) -> None:
    here: dict[str, Tensor] = {}
    there: dict[str, Tensor] = {}
    prune(open_store(saved, here), (Wanda(), BARBER), tiny_ids())
    prune(open_store(saved, there), (Wanda(), BARBER), tiny_ids(), place=Place(where, folder=tmp_path))
    assert same(here, there)
    assert list(tmp_path.iterdir()) == []  # the file has no name, so that nothing is left of it whatever happens


@pytest.mark.parametrize("where", ["device", "cpu", "disk"])
def test_hidden_states_have_the_precision_of_the_model(saved: Path, where: str, tmp_path: Path) -> None:
    _, stream = prepare_inputs(open_store(saved), tiny_ids(6), 4, Place(where, folder=tmp_path))
    assert (stream.dtype, stream[0].shape, stream[1].shape) == (torch.bfloat16, (4, 24, 32), (2, 24, 32))
    assert stream._data is not None and stream._data.dtype == torch.bfloat16


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_wider_precision_is_taken_on_without_loss(where: str, tmp_path: Path) -> None:
    """Mamba's first block is given bfloat16 and returns float32, micro-batch by micro-batch."""
    narrow, wide = torch.randn(3, 2, 4).bfloat16(), torch.randn(2, 2, 4)
    stream = Stream(3, 2, Place(where, folder=tmp_path))
    stream[0], stream[1] = narrow[:2], narrow[2:]
    stream[0] = wide
    assert torch.equal(stream[0], wide) and torch.equal(stream[1], narrow[2:]) and stream[1].dtype == torch.bfloat16
    copy = stream.clone()
    stream[0] = narrow[:2]
    assert stream.dtype == torch.bfloat16 and torch.equal(copy[0], wide) and copy.dtype == torch.float32
