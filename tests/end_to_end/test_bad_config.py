"""A config.json, or a link to weights, that says nothing that could be understood."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import Refuse
from end_to_end.test_bad_model import change_config


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.mark.parametrize("config", [3, [1], {}, {"quant_method": "compressed-tensors", "config_groups": [1]}])
def test_a_quantization_config_that_is_none(refuse: Refuse, copy: Path, config: Any) -> None:
    refuse(change_config(copy, quantization_config=config), "quantization_config that can't be understood", "mend it")


def test_a_dtype_in_which_no_model_runs(refuse: Refuse, copy: Path) -> None:
    refuse(change_config(copy, dtype="int8"), "config.json says that the weights are int8", "remove the entry")


def test_a_deep_nest_in_the_config(refuse: Refuse, copy: Path) -> None:
    (copy / "config.json").write_text("[" * 100_000)
    refuse(copy, "config.json", "describes no model")


def test_a_link_to_weights_that_are_gone(refuse: Refuse, copy: Path) -> None:
    """As in a cache of which somebody has removed the largest files."""
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to("../blobs/gone")
    refuse(copy, "model.safetensors is a link to ../blobs/gone, which is not there; fetch it again")
