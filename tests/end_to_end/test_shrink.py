"""`autoprune shrink`: what stays keeps its bits, it resumes, and its results are models like any other."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import autoprune
from autoprune.cli.main import main
from end_to_end.forks import Forks
from end_to_end.tiny import SEQLEN, Texts, change_weights, contents, same_bits, save_tiny, tensors, tiny_model

Options = dict[str, Any]
BLOCKS = 5


@pytest.fixture(scope="module")
def options(texts: Texts) -> Options:
    return {"calibration_data": texts.calibration, "nsamples": 8, "seqlen": SEQLEN, "blocks": 2}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of five blocks. Nobody writes there."""
    return save_tiny(tmp_path_factory.mktemp("shrink") / "dense", tiny_model(num_hidden_layers=BLOCKS))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Starts runs that can be killed."""
    starter = Forks()
    yield starter
    starter.close()


def _renamed(name: str, kept: tuple[int, ...]) -> str:
    """A stored name of the smaller model as the dense one has it."""
    return re.sub(r"layers\.(\d+)", lambda found: f"layers.{kept[int(found[1])]}", name)


def test_what_stays_keeps_its_bits(tmp_path: Path, dense: Path, options: Options) -> None:
    before = contents(dense)
    result = autoprune.shrink(dense, tmp_path / "out", heal="none", **options)
    assert contents(dense) == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    old, new = tensors(dense), tensors(tmp_path / "out")
    assert all(same_bits(new[name], old[_renamed(name, result.kept)]) for name in new)
    assert len(new) == len(old) - 2 * 9
    assert result.parameters_after == sum(t.numel() for t in new.values())
    assert result.parameters_gone == 1 - result.parameters_after / result.parameters_before
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 3
    record = json.loads((tmp_path / "out/autoprune.json").read_text())["shrink"]
    assert record["dropped"] == [*result.dropped] and [note["changed"] for note in record["blocks"]] == [[], [], []]


def test_blocks_that_do_nothing_go_first(tmp_path: Path, options: Options) -> None:
    """Whatever chooses, blocks 1 and 2 are the ones: they add next to nothing to the hidden states."""

    def still(held: dict[str, torch.Tensor]) -> None:
        for name, tensor in held.items():
            if re.search(r"layers\.[12]\..*(o_proj|down_proj)", name):
                tensor.mul_(1e-4)

    model = change_weights(save_tiny(tmp_path / "dense", tiny_model(num_hidden_layers=BLOCKS)), still)
    for by in ("influence", "angular", "divergence"):
        result = autoprune.shrink(model, tmp_path / by, by=by, heal="none", **options)
        assert result.dropped == (1, 2), by
        (shift,) = (
            autoprune.compare(model, tmp_path / by, eval_data=[options["calibration_data"]], seqlen=SEQLEN)
            .models[0]
            .shifts.values()
        )
        assert shift.kld.mean < 1e-4


def test_healing_changes_the_neighbours_alone(tmp_path: Path, dense: Path, options: Options) -> None:
    out = tmp_path / "out"
    result = autoprune.shrink(dense, out, by="angular", learning_rate=0.01, **options)
    gap = result.dropped[0]
    beside = {block for block in (gap - 1, gap + 2) if 0 <= block < BLOCKS}
    assert result.healed and set(result.healed) == beside
    assert all(after <= before for before, after in result.healed.values())
    assert any(after < 0.95 * before for before, after in result.healed.values())
    old, new = tensors(dense), tensors(out)
    changed = {name for name in new if not same_bits(new[name], old[_renamed(name, result.kept)])}
    record = json.loads((out / "autoprune.json").read_text())["shrink"]["blocks"]
    assert changed == {name for note in record for name in note["changed"]} != set()
    assert {result.kept[int(name.split(".")[2])] for name in changed} <= beside
    assert main(["verify", str(out), "--model", str(dense)]) == 0


def test_two_runs_and_killed_ones_give_the_same_bytes(
    tmp_path: Path, dense: Path, options: Options, forks: Forks
) -> None:
    """A run that is killed while it writes any of its shards goes on to the same bytes."""
    whole = [tmp_path / name for name in ("one", "two")]
    for out in whole:
        autoprune.shrink(dense, out, by="angular", **options)
    expected = contents(whole[0])
    assert contents(whole[1]) == expected
    for stop in (1, 3):
        out = tmp_path / f"stopped{stop}"
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        forks.start(["shrink", str(dense), str(out), "--by", "angular", *words], tmp_path / "log", die_in_save=stop)
        assert forks.wait() == -signal.SIGKILL and not out.exists()
        with pytest.raises(autoprune.OutputError, match="an unfinished run lies beside it"):
            autoprune.shrink(dense, out, by="angular", **options)
        with pytest.raises(autoprune.OutputError, match=r"was another one: asked\.blocks was 2"):
            autoprune.shrink(dense, out, by="angular", resume=True, **{**options, "blocks": 1})
        autoprune.shrink(dense, out, by="angular", resume=True, **options)
        assert contents(out) == expected
    again = autoprune.shrink(dense, whole[0], by="angular", resume=True, **options)
    assert again.directory == whole[0] and contents(whole[0]) == expected


def test_its_results_are_models(
    tmp_path: Path, dense: Path, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are pruned to zeros, described and verified, and pruned models are made smaller with their zeros."""
    small, pruned, both = (tmp_path / name for name in ("small", "pruned", "both"))
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["shrink", str(dense), str(small), *flags]) == 0
    assert re.search(r"blocks gone: \d, \d; [\d,]+ -> [\d,]+ parameters", capsys.readouterr().out)
    assert main(["verify", str(small)]) == 0
    assert main(["inspect", str(small)]) == 0
    assert f"made smaller from {dense}: blocks gone: " in capsys.readouterr().out
    data = {name: options[name] for name in ("calibration_data", "nsamples", "seqlen")}
    zeros = autoprune.prune(small, steps="wanda", sparsity=0.5, save_model=pruned, **data)
    assert zeros.summary is not None and zeros.summary.sparsity == 0.5
    assert main(["verify", str(pruned)]) == 0
    result = autoprune.shrink(pruned, both, **{**options, "blocks": 1})
    old, new = tensors(pruned), tensors(both)
    for name in (name for name in new if name.endswith("_proj.weight")):
        assert bool((new[name][old[_renamed(name, result.kept)] == 0] == 0).all())
    change_weights_of_a_shard(small)
    assert main(["verify", str(small)]) == 1


def change_weights_of_a_shard(directory: Path) -> None:
    path = sorted(directory.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def test_a_changed_tensor_is_found(tmp_path: Path, dense: Path, options: Options) -> None:
    """Against the dense model, even where the hashes were made to fit."""
    from autoprune.evaluation.audit import audit
    from autoprune.storage.files import file_sha256

    out = tmp_path / "out"
    autoprune.shrink(dense, out, heal="none", **options)
    change_weights_of_a_shard(out)
    raw = json.loads((out / "autoprune.json").read_text())
    for entry in raw["shards"]:
        entry["sha256"] = file_sha256(out / entry["name"])
    (out / "autoprune.json").write_text(json.dumps(raw))
    assert audit(out).sound
    (fault,) = audit(out, dense).faults
    assert "differs from the dense model" in fault.what


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"blocks": None}, "nothing is to go: give --blocks"),
        ({"blocks": 0}, "nothing is to go: give --blocks"),
        ({"blocks": 5}, "--blocks 5 is 5 of 5, which leaves 0; at least 1 must stay: give 4 or less"),
        ({"blocks": 0.95}, "--blocks 0.95 is 5 of 5, which leaves 0"),
        ({"blocks": 1.5}, "--blocks 1.5 is neither a whole number nor a share below 1"),
        ({"blocks": -1}, "--blocks -1 is too small"),
        ({"blocks": float("nan")}, "--blocks nan is too small"),
        ({"blocks": float("inf")}, "--blocks inf is neither a whole number nor a share"),
        ({"by": "size"}, "--by 'size' is unknown"),
        ({"heal": "prayer"}, "--heal 'prayer' is unknown"),
        ({"sparsity": "2:4"}, "option 'sparsity' means nothing to shrink"),
        (
            {"nsamples": 1},
            "judges by samples that are held out, but all 1 windows run as one batch",
        ),
        ({"by": "divergence", "memory": "8GiB"}, "--by divergence holds the hidden states of many models"),
    ],
)
def test_bad_choices(wrong: Options, expected: str, tmp_path: Path, dense: Path, options: Options) -> None:
    with pytest.raises(autoprune.RecipeError, match=expected):
        autoprune.shrink(dense, tmp_path / "out", **{**options, **wrong})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("out", ["", "a" * 300, None, 3])
def test_out_must_be_a_name(out: Any, dense: Path, options: Options) -> None:
    with pytest.raises(autoprune.RecipeError, match=r"^out is (of type|no path of a file system)"):
        autoprune.shrink(dense, out, **options)


def test_the_result_goes_beside_the_model(dense: Path, options: Options, tmp_path: Path) -> None:
    with pytest.raises(autoprune.OutputError, match=r"^the result would go to .*, which lies in the directory"):
        autoprune.shrink(dense, dense / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(autoprune.OutputError, match=r"full: the directory is not empty; choose another"):
        autoprune.shrink(dense, tmp_path / "full", **options)


def test_a_model_in_memory_is_refused(tmp_path: Path, options: Options) -> None:
    model: Any = tiny_model()
    with pytest.raises(autoprune.RecipeError, match="LlamaForCausalLM; give its hub id or its directory"):
        autoprune.shrink(model, tmp_path / "out", **options)


def test_memory_that_runs_out_has_a_remedy(
    tmp_path: Path, dense: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("autoprune.run.shrink.observe_turns", runs_out)
    with pytest.raises(autoprune.AutoPruneError, match=r"memory ran out .*--activations disk"):
        autoprune.shrink(dense, tmp_path / "out", **options)


def test_a_head_that_names_a_block(tmp_path: Path, options: Options) -> None:
    def add(held: dict[str, torch.Tensor]) -> None:
        held[f"model.layers.{BLOCKS}.eh_proj.weight"] = torch.ones(4, 4)

    model = change_weights(save_tiny(tmp_path / "dense", tiny_model(num_hidden_layers=BLOCKS)), add)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    for wanted in ({}, {"blocks": None, "mlp": 0.5, "multiple": 16}):
        with pytest.raises(autoprune.ModelError, match=r"layers.5.eh_proj.weight belongs to a head"):
            autoprune.shrink(model, tmp_path / "out", **{**options, **wanted})
