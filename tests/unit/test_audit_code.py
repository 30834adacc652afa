"""`autoprune verify` on a result whose model brings its own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from end_to_end.tiny import save_tiny, write_words

from autoprune.cli.main import main
from autoprune.run.api import prune

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "mine"
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


def test_a_result_that_brings_its_own_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is pruned, recorded with its code, and verified with the flag that runs it."""
    model = save_tiny(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    entries = {"auto_map": {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}}
    (model / "config.json").write_text(json.dumps({**config, **entries, "model_type": "mine"}))
    (model / "code.py").write_text(CODE)
    text = write_words(tmp_path / "words.txt", 300, 0)
    options: dict[str, Any] = {"calibration_data": text, "nsamples": 4, "seqlen": 16, "trust_remote_code": True}
    prune(model, sparsity_ratio=0.5, save_model=tmp_path / "out", **options)
    recorded = json.loads((tmp_path / "out/autoprune.json").read_text())["model"]["code"]
    assert main(["verify", str(tmp_path / "out"), "--trust_remote_code"]) == 0
    capsys.readouterr()
    (model / "code.py").write_text(CODE + "# changed\n")
    prune(model, sparsity_ratio=0.5, save_model=tmp_path / "again", **options)
    assert json.loads((tmp_path / "again/autoprune.json").read_text())["model"]["code"] != recorded
