"""The files of a result: which are copied, and how blocks become shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autoprune.errors import OutputError
from autoprune.storage import shards
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.files import draft, file_sha256
from autoprune.storage.manifest import MANIFEST
from autoprune.storage.result import Workplace
from autoprune.storage.shards import CheckpointWriter, companions
from autoprune.storage.weight_files import INDEX, SINGLE

ONE = {"w": torch.ones(2)}


def test_companions_are_all_but_weights_and_our_own_files(tmp_path: Path) -> None:
    copied = [
        "chat_template.jinja",
        "config.json",
        "modeling_custom.py",
        "spiece.model",
        "tokenizer.json",
        "vocab.txt",
    ]
    left = [
        SINGLE,
        INDEX,
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        "consolidated.00.pth",
        MANIFEST,
        "README.md",
        ".gitattributes",
    ]
    for name in [*copied, *left]:
        (tmp_path / name).write_text("x")
    (tmp_path / "original").mkdir()
    assert [path.name for path in companions(tmp_path)] == copied


def test_hash(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_draft_has_a_name_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    """Two that write one file do not mix, whatever the length of its name."""
    for name in ("table.json", "n" * 255, "ü" * 127):
        with draft(tmp_path / name) as first, draft(tmp_path / name) as second:
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / name).read_text() == "first", "the one that ends last stays"
        with pytest.raises(KeyboardInterrupt), draft(tmp_path / name) as third:
            third.write_text("half")
            raise KeyboardInterrupt
        assert (tmp_path / name).read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    """Two blocks and two tensors outside them."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text('{"torch_dtype": "float32"}  ')
    held = {
        "block.0": torch.ones(2),
        "block.1": torch.full((2,), 2.0),
        "head": torch.full((30,), 3.0),
        "embedding": torch.full((30,), 4.0),
    }
    save_file(held, tmp_path / "source" / SINGLE)
    return Checkpoint.open(tmp_path / "source")


def test_checkpoint_is_written_block_by_block(
    tmp_path: Path, source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "OUTSIDE_SHARD", 100)  # bytes: a tensor larger than a piece gets one of its own
    place = Workplace(tmp_path / "out", overwrite=False)
    place.begin(source.bytes)
    made = CheckpointWriter(place, source, ["head", "embedding"], 2)
    made.write_block(0, {"block.0": torch.zeros(2)})
    made.write_block(1, {"block.1": torch.zeros(2)})
    made.finish()
    place.publish()
    written = Checkpoint.open(tmp_path / "out")
    assert written.shards == {
        name: f"model-{i + 1:05d}-of-00004.safetensors"
        for i, name in enumerate(["embedding", "head", "block.0", "block.1"])
    }
    values = {name: float(tensor[0]) for name, tensor in written.read(written.shards).items()}
    assert values == {"block.0": 0, "block.1": 0, "head": 3, "embedding": 4}
    assert (tmp_path / "out/config.json").read_bytes() == (source.directory / "config.json").read_bytes()
    assert json.loads((tmp_path / "out" / INDEX).read_text())["metadata"] == {"total_size": 4 * 64}
    assert place.target == tmp_path / "out"


def test_a_block_that_was_not_written_is_noticed(tmp_path: Path, source: Checkpoint) -> None:
    place = Workplace(tmp_path / "out", overwrite=False)
    place.begin(source.bytes)
    made = CheckpointWriter(place, source, ["head", "embedding"], 2)
    made.write_block(0, {"block.0": torch.zeros(2)})
    with pytest.raises(
        OutputError, match=r"tensor block\.1 of the original was not written; nothing was put in place"
    ):
        made.finish()
    place.abandon()
    assert not (tmp_path / "out").exists()
