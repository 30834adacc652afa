"""The page that shows the idea gives what the program gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.core.sparsity import SemiStructured, Target, Unstructured

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "examples" / "loop.py"
DEMO = ROOT / "src" / "autoprune" / "demo"


@pytest.mark.parametrize("target", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_the_page_gives_the_same_bits(target: Target, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("loop", PAGE)
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    ids = torch.randint(3, 1500, (4, 32), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    ours = AutoModelForCausalLM.from_pretrained(DEMO)
    theirs = AutoModelForCausalLM.from_pretrained(DEMO)
    page.prune(ours.model, ours.model.layers, ids, target)
    autoprune.prune(
        theirs,
        sparsity="2:4" if isinstance(target, SemiStructured) else "0.5",
        prune_method="wanda",
        calibration_data=tmp_path / "ids.safetensors",
        nsamples=4,
        seqlen=32,
        batch_size=1,
    )
    here, there = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 80
