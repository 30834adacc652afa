"""Checkpoints are read lazily, by name, and only when they are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from end_to_end.tiny import same_bits
from safetensors.torch import save_file
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.storage.ahead import ReadAhead
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.locate import DEMO, locate
from autoprune.storage.values import ValueCheck
from autoprune.storage.weight_files import INDEX, SINGLE

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a.bias": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "b.weight": torch.ones(4, 1, dtype=torch.float16),
    "steps": torch.tensor(7),
}


def write(directory: Path, shards: dict[str, dict[str, Tensor]]) -> Path:
    """A checkpoint of these shards, with an index if there are several."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    for name, held in shards.items():
        save_file(held, directory / name)
    if set(shards) != {SINGLE}:
        (directory / INDEX).write_text(
            json.dumps({"weight_map": {tensor: name for name, held in shards.items() for tensor in held}})
        )
    return directory


def halves() -> dict[str, dict[str, Tensor]]:
    """The tensors in two shards."""
    names = list(TENSORS)
    return {f"model-{i + 1}.safetensors": {name: TENSORS[name] for name in names[2 * i : 2 * i + 2]} for i in range(2)}


@pytest.fixture(params=["single", "sharded"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write(tmp_path / "model", {SINGLE: TENSORS} if request.param == "single" else halves()))


def test_facts(checkpoint: Checkpoint) -> None:
    assert set(checkpoint.shards) == set(TENSORS)
    assert checkpoint.sizes() == {name: tensor.numel() * tensor.element_size() for name, tensor in TENSORS.items()}
    assert checkpoint.shapes() == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert checkpoint.dtypes() == {"a.weight": "F32", "a.bias": "BF16", "b.weight": "F16", "steps": "I64"}
    assert checkpoint.bytes == sum(path.stat().st_size for path in checkpoint.directory.glob("*.safetensors"))


def test_read_gives_what_was_asked_for_bit_for_bit(checkpoint: Checkpoint) -> None:
    read = checkpoint.read(["b.weight", "a.bias"])
    assert set(read) == {"b.weight", "a.bias"}
    assert all(same_bits(tensor, TENSORS[name]) for name, tensor in read.items())


def test_tensors_live_in_memory_of_their_own(checkpoint: Checkpoint) -> None:
    """They can be changed, and the file can be replaced under them."""
    (read,) = checkpoint.read(["a.weight"]).values()
    read.zero_()
    assert same_bits(checkpoint.read(["a.weight"])["a.weight"], TENSORS["a.weight"])


def test_shards_that_vanish_meanwhile(checkpoint: Checkpoint) -> None:
    for path in checkpoint.files:
        path.unlink()
    with pytest.raises(ModelError, match=r"\.safetensors can't be read"):
        checkpoint.read(["a.weight"])


def test_scan_needs_no_index(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", halves())
    (directory / INDEX).unlink()
    assert Checkpoint.scan(directory, sorted(path.name for path in directory.glob("*.safetensors"))).shards == {
        tensor: name for name, held in halves().items() for tensor in held
    }


def test_the_single_file_wins_as_in_transformers(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", halves())
    save_file({"other": torch.zeros(1)}, directory / SINGLE)
    assert Checkpoint.open(directory).shards == {"other": SINGLE}


def test_fingerprint_depends_on_names_shapes_and_bytes_but_not_on_shards(tmp_path: Path) -> None:
    def fingerprint(name: str, shards: dict[str, dict[str, Tensor]]) -> str:
        return ValueCheck(Checkpoint.open(write(tmp_path / name, shards))).finish()

    whole = fingerprint("whole", {SINGLE: TENSORS})
    assert whole == fingerprint("halves", halves())
    changes = {
        "value": {"a.bias": torch.tensor([1.5, 0.0], dtype=torch.bfloat16)},
        "shape": {"a.weight": TENSORS["a.weight"].view(3, 2)},
        "scalar": {"steps": torch.tensor(8)},
        "more": {"c": torch.empty(0)},
    }
    others = [fingerprint(name, {SINGLE: TENSORS | change}) for name, change in changes.items()]
    assert len({whole, *others}) == 1 + len(changes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_bad_numbers_are_found_in_every_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    good = torch.ones(3, 5).to(dtype)
    ValueCheck(Checkpoint.open(write(tmp_path / "good", {SINGLE: {"w": good}}))).finish()
    values = ("nan",) if dtype is torch.float8_e4m3fn else ("nan", "inf", "-inf")
    for value in values:
        bad = torch.ones(3, 5)
        bad[2, 4] = float(value)
        with pytest.raises(ModelError, match=r"model\.safetensors: tensor w holds NaN or infinity"):
            ValueCheck(Checkpoint.open(write(tmp_path / "bad", {SINGLE: {"w": bad.to(dtype)}}))).finish()


def test_progress_is_told(checkpoint: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    ValueCheck(checkpoint).finish(lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(TENSORS)) for i in range(len(TENSORS))]


def test_words_for_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("demo") == DEMO
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("model", "./model", "~/model", str(tmp_path / "model")):
        assert locate(word).resolve() == tmp_path / "model"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("./gone", "there is no such directory"),
        ("a/b/c", "there is no such directory"),
        ("~/gone", "there is no such directory"),
        ("", "--model is missing"),
        ("someone/model", "the hub can't be reached"),
        ("bert", "the hub can't be reached"),
        ("not a name", "can't have a model of that name"),
    ],
)
def test_words_that_lead_nowhere(word: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=says):
        locate(word, cache_dir=str(tmp_path))


def test_read_ahead_gives_what_was_asked_for(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", halves()))
    ahead = ReadAhead(checkpoint)
    assert ahead.take(0) is None, "nothing was begun"
    ahead.begin(1, ["a.weight"])
    assert ahead.take(0) is None, "another block was begun"
    found = ahead.take(1)
    assert found is not None and list(found) == ["a.weight"]
    assert torch.equal(found["a.weight"], checkpoint.read(["a.weight"])["a.weight"])
    assert ahead.take(1) is None, "it is given once"


def test_read_ahead_tells_of_a_lost_shard_when_the_block_is_wanted(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", halves()))
    for path in checkpoint.files:
        path.unlink()
    ahead = ReadAhead(checkpoint)
    ahead.begin(0, ["a.weight"])
    with pytest.raises(ModelError, match="can't be read"):
        ahead.take(0)
