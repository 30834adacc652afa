"""Blocks whose hidden states are several residual streams, and blocks that are given what belongs to samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from configs import TOKENS, tiny_ids
from families import build
from runs import open_store, prune
from torch import Tensor

from autoprune.model.replay import replay_check
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs
from autoprune.steps.magnitude import Magnitude
from autoprune.steps.wanda import Wanda

STREAMS = {"deepseek_v4": (4, 32), "hy_v4": (4, 32), "qwen4_exp_text": (128,)}  # the last keeps four side by side
GIVEN = ("deepseek_v4", "qwen4_exp_text", "gemma4_text")  # token ids, n-grams, embeddings of every layer


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the family that is asked for."""
    directory = tmp_path_factory.mktemp(request.param)
    build(request.param).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
@pytest.mark.parametrize("saved", STREAMS, indirect=True)
def test_hidden_states_keep_their_shape_wherever_they_lie(
    request: pytest.FixtureRequest, saved: Path, place: str, tmp_path: Path
) -> None:
    store, rest = open_store(saved), STREAMS[request.node.callspec.params["saved"]]
    where = Place(place, store.device, tmp_path if place == "disk" else None)
    _, stream = prepare_inputs(store, tiny_ids(5), 2, where)
    assert [tuple(stream[i].shape) for i in range(len(stream))] == [(n, TOKENS, *rest) for n in (2, 2, 1)]


@pytest.mark.parametrize("saved", GIVEN, indirect=True)
def test_what_belongs_to_samples_comes_with_their_micro_batch(saved: Path) -> None:
    """Other samples would give other numbers, so the replay check sees it; and blocks do depend on it."""
    store, ids = open_store(saved), tiny_ids(4)
    assert replay_check(store, ids).exact
    inputs, _ = prepare_inputs(store, ids, 1, Place())
    calls = [[inputs.calls.of(i, block.index) for block in store.anatomy.blocks] for i in range(4)]
    assert any(not here.same_as(there) for here, there in zip(calls[0], calls[1], strict=True))


@pytest.mark.parametrize("saved", [*STREAMS], indirect=True)
def test_batches_of_samples_change_nothing(saved: Path) -> None:
    """Norms of inputs are sums over samples, however these are grouped; patterns of bfloat16 weights hardly turn."""
    written: list[dict[str, Tensor]] = [{}, {}, {}]
    for held, batch, step in zip(written, (1, 4, 1), (Wanda(), Wanda(), Magnitude()), strict=True):
        prune(open_store(saved, held), (step,), tiny_ids(4), batch=batch)
    one, four, other = written
    assert one.keys() == four.keys()
    same = sum(int(((one[name] == 0) == (four[name] == 0)).sum()) for name in one)
    assert same / sum(tensor.numel() for tensor in one.values()) > 0.995
    assert any(not torch.equal(one[name] == 0, other[name] == 0) for name in one)
