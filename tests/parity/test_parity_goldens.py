"""Agreement with outputs recorded from the authors' published programs (METHODS.md, goldens).

``goldens/`` holds two tiny random models of the project's own with every run but the exempt ones. The trained model
lies beside the checkout, in ../shared; without it its runs are skipped.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoprune.core.selection import count_violations
from autoprune.core.sparsity import SemiStructured, Target, parse_target
from autoprune.errors import RecipeError
from autoprune.model.anatomy import select_layers
from autoprune.model.door import prune_with
from autoprune.steps.barber import Barber
from autoprune.steps.base import Step
from autoprune.steps.table import PRICED, make_steps
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.store import CheckpointStore

AGREEMENT = 0.999  # share of positions
WEIGHTS = 1e-3  # relative difference of a layer's weights
BATCH = 16
COLUMN_BLOCK = 128
CPU = torch.device("cpu")

HERE = Path(__file__).resolve().parent / "goldens"
SHARED = Path(__file__).resolve().parents[3] / "shared"


@dataclass(frozen=True)
class Model:
    """A model with the runs recorded on it."""

    name: str
    directory: Path
    goldens: Path

    @property
    def present(self) -> bool:
        """Whether the files are here."""
        return self.directory.is_dir() and self.goldens.is_dir()

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the manifest that METHODS.md does not exempt."""
        runs = json.loads((self.goldens / "manifest.json").read_text()) if self.present else []
        return [
            run for run in runs if run.get("thr") != 1.0 and not (self.name == "stories260K" and run["type"] == "4:8")
        ]


OWN = [Model(name, HERE / name / "model", HERE / name) for name in ("llama-tiny", "opt-tiny")]
TRAINED = Model("stories260K", SHARED / "realdata" / "stories260K", SHARED / "goldens" / "stories260K")


def _cases() -> list[Any]:
    pairs = [(model, run) for model in [*OWN, TRAINED] for run in model.runs()]
    absent = (
        []
        if TRAINED.present
        else [pytest.param(TRAINED, {}, id=TRAINED.name, marks=pytest.mark.skip("../shared is not here"))]
    )
    return absent + [pytest.param(model, run, id=f"{model.name}-{Path(run['file']).stem}") for model, run in pairs]


@dataclass(frozen=True)
class Outcome:
    """Layers' weights ``[out, in]`` after a run, by parameter name, block by block."""

    blocks: list[dict[str, Tensor]]

    @property
    def weights(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: weight for block in self.blocks for name, weight in block.items()}


def _steps(run: dict[str, Any]) -> tuple[Step, ...]:
    barber = (
        Barber(run["gran"], run["thr"], run.get("metric", "WD"), bool(run.get("retain")))
        if run.get("barber")
        else None
    )
    return (*make_steps([run["method"]], {}), *([barber] if barber else []))


def _store(model: Model, *, resident: bool = True) -> CheckpointStore:
    skeleton = build_skeleton(Checkpoint.open(model.directory), "auto", CPU, trust_remote_code=False)
    return CheckpointStore(skeleton, resident=resident)


def _prune(store: CheckpointStore, model: Model, run: dict[str, Any], batch: int = BATCH) -> None:
    ids = load_file(model.goldens / "calibration.safetensors")["input_ids"]
    target = parse_target(run["type"], run["ratio"])
    prune_with(store, _steps(run), target, ids, batch=batch)


def _layers(store: CheckpointStore) -> Outcome:
    return Outcome(
        [
            {f"{block.full_name(layer)}.weight": layer.matrix for layer in block.layers}
            for block in store.anatomy.blocks
        ]
    )


@cache
def _dense(model: Model) -> dict[str, Tensor]:
    return load_file(model.directory / "model.safetensors")


def _golden_keep(golden: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.unpackbits(golden[f"keep/{name}"].numpy(), axis=1, count=shape[1]).astype(bool))


def _zeros(run: dict[str, Any], target: Target, shape: torch.Size) -> int:
    """How many weights of a layer the first pass zeroes: k = floor(ratio * n) of what is compared together."""
    out, features = shape
    if isinstance(target, SemiStructured):
        return out * features // target.m * (target.m - target.n)
    if run["method"] == "wanda":
        return out * math.floor(target.ratio * features)
    if run["method"] == "sparsegpt":
        widths = [min(COLUMN_BLOCK, features - start) for start in range(0, features, COLUMN_BLOCK)]
        return sum(math.floor(target.ratio * out * width) for width in widths)
    return math.floor(target.ratio * out * features)


def _half(name: str) -> str:
    """The half of the block that a layer belongs to."""
    return "attention" if "attn" in name else "mlp"


def _check_counts(run: dict[str, Any], target: Target, block: dict[str, Tensor]) -> None:
    """Zeros are exact; only LLM-Barber over a whole sub-block lets layers trade, and then their sum is exact."""
    found = {name: int((weight == 0).sum()) for name, weight in block.items()}
    wanted = {name: _zeros(run, target, weight.shape) for name, weight in block.items()}
    if run.get("gran") == "block":
        halves = {_half(name) for name in block}
        found = {half: sum(n for name, n in found.items() if _half(name) == half) for half in halves}
        wanted = {half: sum(n for name, n in wanted.items() if _half(name) == half) for half in halves}
    assert found == wanted


@pytest.mark.parametrize(("model", "run"), _cases())
def test_golden(model: Model, run: dict[str, Any]) -> None:
    golden = load_file(model.goldens / run["file"])
    target = parse_target(run["type"], run["ratio"])
    assert target is not None
    store = _store(model)
    _prune(store, model, run)
    outcome = _layers(store)
    assert {f"keep/{name}" for name in outcome.weights} == {name for name in golden if name.startswith("keep/")}
    agreeing = total = 0
    for name, weight in outcome.weights.items():
        agreeing += int(((weight != 0) == _golden_keep(golden, name, weight.shape)).sum())
        total += weight.numel()
        if f"weight/{name}" in golden:
            wanted = golden[f"weight/{name}"]
            assert (weight - wanted).norm() <= WEIGHTS * wanted.norm(), name
        else:  # no weight changes: survivors are the dense weights, bit for bit
            assert torch.equal(weight, _dense(model)[name] * (weight != 0)), name
        if isinstance(target, SemiStructured):
            assert count_violations(weight != 0, target) == 0, name
    assert agreeing >= AGREEMENT * total, f"{agreeing / total:.4%} of positions"
    for block in outcome.blocks:
        _check_counts(run, target, block)


def test_every_kind_of_run_is_here() -> None:
    """The manifests cover each first pass, granularity, metric and both changes of weights: nothing was lost on the
    way.
    """
    for model in OWN:
        runs = model.runs()
        assert len(runs) == 31
        assert {run["method"] for run in runs} == {first for first, *_ in PRICED}
        assert {run["type"] for run in runs} == {"unstructured", "2:4", "4:8"}
        assert {run["gran"] for run in runs if run.get("barber")} == {"block", "layer", "output1", "input1"}
        assert {run.get("metric", "WD") for run in runs if run.get("barber")} == {"WD", "W", "D"}
        assert any(run.get("retain") for run in runs)
        assert (
            sum(any(name.startswith("weight/") for name in load_file(model.goldens / run["file"])) for run in runs)
            == 5
        )


DEEP = {
    "method": "sparsegpt",
    "ratio": 0.5,
    "type": "unstructured",
    "barber": True,
    "gran": "layer",
    "thr": 0.1,
    "retain": True,
}


@pytest.mark.parametrize("model", OWN, ids=lambda model: model.name)
def test_a_streamed_run_writes_what_a_resident_one_holds(model: Model) -> None:
    """Bit for bit, and a second run gives the same bits; only one block's weights are in memory at a time."""
    resident = _store(model)
    _prune(resident, model, DEEP)
    written: list[dict[str, Tensor]] = []

    def write(index: int, tensors: dict[str, Tensor]) -> None:
        others = [b for b in streamed.anatomy.blocks if b.index != index]
        assert all(parameter.is_meta for block in others for parameter in block.module.parameters())
        written.append({name: tensor.clone() for name, tensor in tensors.items()})

    streamed = _store(model, resident=False)
    streamed.write_to(write, lambda *_: None)
    _prune(streamed, model, DEEP)
    state = dict(resident.model.named_parameters())
    found = {name: tensor for block in written for name, tensor in block.items()}
    assert set(_layers(resident).weights) <= set(found)
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name]), name


def test_a_width_that_groups_do_not_divide_is_refused_by_name() -> None:
    """llama-tiny's ffn is 176 wide, which 5 does not divide; its attention is 64 wide, likewise."""
    store = _store(OWN[0])
    with pytest.raises(
        RecipeError,
        match=r"model\.layers\.0\.self_attn\.q_proj has 64 input features, which is not divisible by 5.*--ignore",
    ):
        select_layers(store.anatomy, (), SemiStructured(2, 5))
