"""An index, or a name in config.json, that leads to no weights: called what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_as_loaded import HEAD, configure, saved, stored

from autoprune.errors import ModelError
from autoprune.storage.checkpoint import Checkpoint


@pytest.mark.parametrize("value", [None, 3.5, {"a": 1}, ["x"], "n" * 300, "../model.safetensors", ".", "/x"])
def test_an_index_with_odd_values_is_called_damaged(tmp_path: Path, value: Any) -> None:
    directory = saved(tmp_path / "model")
    weight_map = {**dict.fromkeys(stored(directory), "model-00001-of-00001.safetensors"), HEAD: value}
    shutil.move(directory / "model.safetensors", directory / "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        ModelError, match=r"index\.json is damaged: the file of lm_head\.weight is .*fetch it again"
    ) as caught:
        Checkpoint.open(directory)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_shards_without_their_index_are_no_pickles(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"1 of 2 shards are here .* not model\.safetensors\.index\.json") as caught:
        Checkpoint.open(directory)
    assert ".bin" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.safetensors", "../model.safetensors", "weights.bin", 3])
def test_a_named_weight_file_that_is_none(tmp_path: Path, name: Any) -> None:
    directory = saved(tmp_path / "model")
    configure(directory, transformers_weights=name)
    with pytest.raises(ModelError, match="transformers_weights"):
        Checkpoint.open(directory)
