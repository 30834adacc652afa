"""`autoprune shrink --heal distill`: all blocks of the smaller model learn the dense model's predictions."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.evaluation.audit import audit
from autoprune.model.whole import ModelTraining
from autoprune.run import memory
from autoprune.run.shrink_choices import choices
from autoprune.storage.journal import Journal
from end_to_end.forks import Forks
from end_to_end.tiny import SEQLEN, Texts, contents, same_bits, save_tiny, tensors, tiny_model

IDS = torch.randint(3, 100, (20, SEQLEN), generator=torch.Generator().manual_seed(0))
RUN: dict[str, Any] = {
    "calibration_data": IDS,
    "nsamples": len(IDS),
    "seqlen": SEQLEN,
    "heal": "distill",
    "learning_rate": 1e-4,
    "distill_rate": 5e-4,
    "distill_epochs": 2,
    "distill_dtype": "float32",
}
KEPT = {name: RUN[name] for name in ("calibration_data", "nsamples", "seqlen", "learning_rate")}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Starts runs that can be killed."""
    starter = Forks()
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four blocks. Nobody writes there."""
    return save_tiny(tmp_path_factory.mktemp("distilled") / "dense", tiny_model(num_hidden_layers=4))


@torch.no_grad()
def divergence(dense: Path, other: Path, ids: Tensor) -> float:
    """The mean over all tokens of KL(dense || other), by two plain models."""
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits.double().log_softmax(-1)
        for path in (dense, other)
    ]
    return float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())


def test_it_begins_where_the_healing_by_blocks_ends_and_lowers_the_divergence(tmp_path: Path, dense: Path) -> None:
    plain = autoprune.shrink(dense, tmp_path / "plain", blocks=2, **KEPT)
    result = autoprune.shrink(dense, tmp_path / "out", blocks=2, **RUN)
    assert plain.whole == {} and result.kept == plain.kept and result.healed == plain.healed
    loss, held_out = result.whole["distill"], IDS[-2:]
    assert loss["held_out_before"] == pytest.approx(divergence(dense, tmp_path / "plain", held_out), rel=1e-4)
    assert loss["held_out_after"] == pytest.approx(divergence(dense, tmp_path / "out", held_out), rel=1e-4)
    assert loss["held_out_after"] < 0.98 * loss["held_out_before"]
    old, before, after = tensors(dense), tensors(tmp_path / "plain"), tensors(tmp_path / "out")
    outside = [name for name in after if "layers." not in name]
    assert outside and all(same_bits(after[name], old[name]) for name in outside)
    record = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]
    changed = {name for note in record["blocks"] for name in note["changed"]}
    assert {name for name in after if not same_bits(after[name], before[name])} <= changed
    assert all(any(f"layers.{block}." in name for name in changed) for block in range(2))
    assert record["whole"] == {"distill": loss}
    assert "trained together" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert audit(tmp_path / "out", dense).sound


@pytest.mark.parametrize("where", ["training", "noting", "keeping", "putting"])
def test_stopped_and_resumed_gives_the_same_bytes(
    tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = {**RUN, "blocks": 1, "by": "angular"}
    autoprune.shrink(dense, tmp_path / "whole", **run)

    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "training":
            patch.setattr(ModelTraining, "gradients", stops)
        elif where == "noting":
            patch.setattr(Journal, "mark_finished", stops)
        elif where == "keeping":
            patch.setattr(Journal, "keep_finished", stops)
        else:
            patch.setattr(Journal, "put_finished", lambda self: (_half(self), stops()))
        with pytest.raises(KeyboardInterrupt):
            autoprune.shrink(dense, tmp_path / "parts", **run)
    assert not (tmp_path / "parts").exists()
    autoprune.shrink(dense, tmp_path / "parts", resume=True, **run)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("call", [5, 36])  # of two epochs of 18 windows
def test_killed_while_it_trains_and_resumed_gives_the_same_bytes(
    tmp_path: Path, dense: Path, texts: Texts, forks: Forks, call: int
) -> None:
    chosen = {**RUN, "calibration_data": texts.calibration, "mlp": 0.5, "multiple": 16}
    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]

    def start(out: str, *more: str, at: tuple[str, int] = ("", 0)) -> int:
        forks.start(["shrink", str(dense), str(tmp_path / out), *words, *more], tmp_path / "log", die_in_call=at)
        return forks.wait()

    assert start("whole") == 0, (tmp_path / "log").read_text()
    status = start("parts", at=("autoprune.model.whole:ModelTraining.gradients", call))
    assert status == -signal.SIGKILL and not (tmp_path / "parts").exists(), (tmp_path / "log").read_text()
    assert start("parts", "--resume") == 0, (tmp_path / "log").read_text()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def _half(journal: Journal) -> None:
    """Puts one block in place, as a run that is killed right then."""
    path = sorted(journal.workplace.path.glob("journal-whole-block-*"))[0]
    path.rename(journal.workplace.path / "model-00002-of-00004.safetensors")


def test_zeros_stay_and_experts_keep_their_places(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    dense = save_tiny(tmp_path / "dense", tiny_model("mixtral", **sizes))
    pruned = tmp_path / "pruned"
    autoprune.prune(dense, steps="magnitude", sparsity=0.5, save_model=pruned)
    result = autoprune.shrink(pruned, tmp_path / "out", experts=1, **RUN)
    loss = result.whole["distill"]
    assert loss["held_out_after"] < loss["held_out_before"]
    assert audit(tmp_path / "out", pruned).sound
    old, new = tensors(pruned), tensors(tmp_path / "out")
    record = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]["blocks"]
    for block, note in enumerate(record):
        kept = [expert for expert in range(4) if expert not in note["experts_gone"]]
        for name in (name for name in new if re.search(rf"layers\.{block}\..*experts\.\d", name)):
            expert = int(re.findall(r"experts\.(\d)", name)[0])
            before = old[name.replace(f"experts.{expert}.", f"experts.{kept[expert]}.")]
            assert bool((new[name][before == 0] == 0).all()) and not torch.equal(new[name], before)


def test_narrow_blocks_learn_too(tmp_path: Path, dense: Path) -> None:
    result = autoprune.shrink(dense, tmp_path / "out", blocks=1, mlp=0.5, multiple=16, **RUN)
    loss = result.whole["distill"]
    assert len(result.dropped) == 1 and loss["held_out_after"] < loss["held_out_before"]
    assert loss["held_out_after"] == pytest.approx(divergence(dense, tmp_path / "out", IDS[-2:]), rel=1e-4)


def test_too_little_memory_is_said_before_anything_is_done(
    tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Free", (), {"available": 2**20}))
    with pytest.raises(
        autoprune.RecipeError, match=r"distill trains the whole model at once.*--heal reconstruct does"
    ):
        autoprune.shrink(dense, tmp_path / "out", blocks=1, **RUN)
    assert not [*tmp_path.iterdir()]


def test_the_hidden_states_beside_it_count(tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = list[int]()
    real = memory.check_whole

    def count(*given: Any) -> None:
        counted.append(given[-1])
        real(*given)

    monkeypatch.setattr("autoprune.run.shrink.check_whole", count)
    for place in ("cpu", "disk"):
        autoprune.shrink(dense, tmp_path / place, blocks=1, activations=place, **{**RUN, "distill_epochs": 1})
    assert counted == [len(IDS) * SEQLEN * 32 * 4, 0]
    monkeypatch.setattr("autoprune.run.shrink.check_whole", lambda *given: real(*given[:-1], 2**60))
    with pytest.raises(autoprune.RecipeError, match="give a smaller --batch_size or --activations disk"):
        autoprune.shrink(dense, tmp_path / "out", blocks=1, **RUN)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"blocks": 1, "distill_epochs": 2},
            "--distill_epochs changes nothing with --heal reconstruct; give",
        ),
        (
            {"blocks": 1, "heal": "none", "epochs": 2},
            "--epochs changes nothing with --heal none; give --heal r",
        ),
        ({"blocks": 1, "heal": "rescale", "distill_rate": 0.1}, "--distill_rate changes nothing with --heal rescale"),
        ({"mlp": 0.5, "by": "angular"}, "--by changes nothing without --blocks; give --blocks, or leave out --by"),
        ({"blocks": 1, "multiple": 32}, "--multiple changes nothing without --mlp"),
        ({"blocks": 1, "experts_by": "load"}, "--experts_by changes nothing without --experts"),
        ({"blocks": 1, "no_dense": True}, "option 'no_dense' means nothing to shrink"),
    ],
)
def test_what_changes_nothing_is_refused(options: dict[str, Any], expected: str, tmp_path: Path, dense: Path) -> None:
    with pytest.raises(autoprune.RecipeError, match=expected):
        autoprune.shrink(dense, tmp_path / "out", calibration_data=IDS, **options)


def test_the_rate_where_no_block_goes(tmp_path: Path) -> None:
    """Least squares leaves less to gain than a gap of blocks does, so steps are smaller; who names a rate gets it."""

    def rate(**options: Any) -> float:
        recipe, _ = choices("demo", tmp_path / "out", {"heal": "distill", "calibration_data": "demo", **options})
        return float(recipe.options_of("distill").distill_rate)

    assert rate(mlp=0.25) == 1e-4
    assert rate(blocks=1) == rate(blocks=1, mlp=0.25) == 2e-4
    assert rate(mlp=0.25, distill_rate=3e-4) == 3e-4
