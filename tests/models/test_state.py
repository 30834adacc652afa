"""Gemma 4's later blocks take keys and values from earlier ones, which leave them in an argument of the call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from configs import TOKENS, in_bfloat16, tiny_ids, tiny_model
from runs import BARBER, open_store, prune
from safetensors.torch import load_file, save_file
from torch import Tensor

import autoprune
from autoprune.events import BlockResult, Event
from autoprune.model.calls import BlockCall, Calls
from autoprune.steps.wanda import Wanda


@pytest.mark.parametrize("name", ["llama", "gemma4_text"])
def test_the_first_of_two_passes_is_what_it_is_alone(name: str, tmp_path: Path) -> None:
    in_bfloat16(tiny_model(name)).save_pretrained(tmp_path)
    alone: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    prune(open_store(tmp_path, alone), (Wanda(),), tiny_ids())
    prune(open_store(tmp_path, second, passed=first), (Wanda(), BARBER), tiny_ids())
    assert alone.keys() == first.keys() == second.keys()
    assert all(torch.equal(alone[key], first[key]) for key in alone)
    assert not all(torch.equal(alone[key], second[key]) for key in alone)


def test_a_run_is_resumed_behind_the_block_that_left_something(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_model("gemma4_text").save_pretrained(model)
    save_file({"input_ids": tiny_ids()}, tmp_path / "ids.safetensors")
    options = {
        "calibration_data": tmp_path / "ids.safetensors",
        "nsamples": 6,
        "seqlen": TOKENS,
        "sparsity_ratio": 0.5,
        "prune_barber": True,
    }

    def stop(event: Event) -> None:
        if isinstance(event, BlockResult) and event.block == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autoprune.prune(model, save_model=tmp_path / "resumed", emit=stop, **options)
    autoprune.prune(model, save_model=tmp_path / "resumed", resume=True, **options)
    autoprune.prune(model, save_model=tmp_path / "whole", **options)
    for shard in (tmp_path / "whole").glob("*.safetensors"):
        expected, found = load_file(shard), load_file(tmp_path / "resumed" / shard.name)
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)


def test_calls_that_may_hold_something_are_kept_apart() -> None:
    mask, kept = torch.ones(2), dict[str, Tensor]()
    calls = Calls()
    for _ in range(2):  # two micro-batches of two blocks
        calls.add(
            [
                BlockCall((mask,), {"state": {}}, None, torch.float32),
                BlockCall((mask,), {"state": kept}, None, torch.float32),
            ]
        )
    other = calls.apart()
    other.of(0, 1).kwargs["state"]["keys"] = mask
    assert other.of(1, 1).kwargs["state"] is other.of(0, 1).kwargs["state"]  # one object before, one object now
    assert kept == {} and other.of(0, 0).kwargs["state"] == {} and calls.of(0, 0) is not calls.of(1, 0)
    assert other.of(0, 1).args[0] is mask


def test_another_precision_leaves_the_original_alone() -> None:
    table, state = torch.ones(2), {"keys": torch.ones(2, dtype=torch.bfloat16)}
    call = BlockCall((table, torch.arange(2)), {"state": state}, None, torch.bfloat16)
    assert call.cast(torch.bfloat16) is call
    cast = call.cast(torch.float32)
    assert (cast.args[0], cast.args[1].dtype, cast.kwargs["state"]["keys"].dtype) == (
        table,
        torch.int64,
        torch.float32,
    )
    assert state["keys"].dtype == torch.bfloat16
