"""`autoprune speed` on tiny models: what is measured, said and refused. No time is asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig

import autoprune
from autoprune.cli.main import main
from autoprune.errors import AutoPruneError, ModelError, OutputError, RecipeError, ShortageError
from autoprune.events import Event, Phase, Work
from autoprune.results.codec import from_jsonable
from autoprune.results.speed import ModelSpeed
from autoprune.storage.internals import compiled_everywhere
from end_to_end.tiny import CONTEXT, save_tiny, tensors, tiny_model

FEW: dict[str, Any] = {"rounds": 6, "prompt_tokens": 4, "new_tokens": 3, "batch_size": 2}


@pytest.fixture(scope="module")
def pruned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at 2:4."""
    folder = tmp_path_factory.mktemp("pruned") / "semi"
    autoprune.prune(tiny, prune_method="magnitude", sparsity_type="2:4", save_model=folder)
    return folder


def test_models_beside_each_other(tiny: Path, pruned: Path, tmp_path: Path) -> None:
    seen = list[Event]()
    found = autoprune.speed([tiny, pruned], save=tmp_path / "results", emit=seen.append, **FEW)
    dense, semi = found.models
    assert (dense.model, semi.model) == ("model", "semi")
    stored = tensors(tiny)
    tied = {name: t for name, t in stored.items() if t.dim() > 1}
    assert dense.weights == sum(t.numel() for t in tied.values())
    assert dense.file_bytes == (tiny / "model.safetensors").stat().st_size
    assert dense.weight_bytes >= sum(t.nbytes for t in stored.values())
    assert dense.zeros == 0
    assert semi.zeros == semi.zeros_2_4 == sum(int((t == 0).sum()) for t in tensors(pruned).values() if t.dim() > 1)
    for model in found.models:
        assert len(model.load) == FEW["rounds"]
        (timing,) = model.timings
        for values in (timing.first_token, timing.prompt_rate, timing.rate, timing.batch_rate):
            assert len(values) == FEW["rounds"]
            assert min(values) > 0
    (sentence,) = found.sentences
    assert "of its weights are zeros" in sentence
    assert "They are 2:4" in sentence
    raw = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert tuple(from_jsonable(ModelSpeed, one) for one in raw["models"]) == found.models
    assert raw["settings"]["prompt_tokens"] == 4
    assert sentence in (tmp_path / "results" / "speed.txt").read_text()
    phases = [event.name for event in seen if isinstance(event, Phase)]
    assert phases == ["loading", "warming up", "measuring"]
    done = [(event.done, event.total) for event in seen if isinstance(event, Work) and event.phase == "measuring"]
    assert done == [(i, 12) for i in range(1, 13)]
    with pytest.raises(OutputError, match=r"there is a speed\.json already.*--overwrite"):
        autoprune.speed(tiny, save=tmp_path / "results", **FEW)


def test_the_command(tiny: Path, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for name, value in FEW.items() for word in (f"--{name}", str(value))]
    assert main(["speed", str(tiny), str(pruned), *words, "--save", str(tmp_path), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    for figure in ("file, MB", "weights in memory, MB", "load, s", "first token, ms", "prompt tokens/s, batch 2"):
        assert figure in out
    assert "tokens/s, batch 1" in out
    assert "bfloat16" in out
    assert "semi: " in out
    assert main(["speed", str(tiny), "--quiet"]) == 2
    assert "--quiet shows nothing" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of torch, about what its own compiler uses
def test_compiled_beside_eager(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not turned into C++, which takes a minute."""

    def traced() -> CompileConfig:
        plan = compiled_everywhere()
        plan.backend, plan.mode = "eager", "default"
        return plan

    monkeypatch.setattr("autoprune.evaluation.speed.compiled_everywhere", traced)
    found = autoprune.speed(tiny, compiled=True, **FEW)
    assert found.modes == ("eager", "compiled")
    (sentence,) = found.sentences
    assert sentence.startswith("model, compiled, against eager: ")


def no_cache(path: Path) -> None:
    from transformers import AutoModelForCausalLM, OpenAIGPTConfig

    config = OpenAIGPTConfig(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)


def short(path: Path) -> None:
    save_tiny(path, tiny_model(max_position_embeddings=6))


def truncated(path: Path) -> None:
    save_tiny(path)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-50])


BAD: dict[str, tuple[Callable[[Path], object], type[AutoPruneError], str]] = {
    "missing": (lambda path: None, ModelError, "there is no such directory"),
    "no cache": (no_cache, ModelError, "other: OpenAIGPTLMHeadModel keeps no cache.*leave this model out"),
    "short context": (short, RecipeError, "context of 6 tokens, and --prompt_tokens 4 with --new_tokens 3 needs 7"),
    "truncated": (truncated, ModelError, r"model\.safetensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models(name: str, tiny: Path, tmp_path: Path) -> None:
    make, error, words = BAD[name]
    make(tmp_path / "other")
    with pytest.raises(error, match=words):
        autoprune.speed([tiny, tmp_path / "other"], save=tmp_path / "results", **FEW)
    assert not (tmp_path / "results").exists()


def test_bad_choices(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="give at least one model"):
        autoprune.speed([], **FEW)
    with pytest.raises(RecipeError, match=r"--rounds 5 is too small; it must be at least 6"):
        autoprune.speed(tiny, rounds=5)
    with pytest.raises(RecipeError, match=r"'seqlen' means nothing to speed"):
        autoprune.speed(tiny, seqlen=4)

    class Little:
        available = 100_000

    monkeypatch.setattr("autoprune.run.speed.psutil.virtual_memory", Little)
    with pytest.raises(RecipeError, match=r"holds its models in memory together.*fewer or smaller models"):
        autoprune.speed([tiny, tiny], **FEW)


def test_what_can_not_be_compiled_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is it measured eagerly under another name."""
    kind = type(tiny_model())
    monkeypatch.setattr(kind, "get_compiled_call", lambda self, _: self.__call__)
    with pytest.raises(ModelError, match=r"model: --compiled does not work with LlamaForCausalLM: .*fixed size"):
        autoprune.speed(tiny, compiled=True, **FEW)

    def fails(*_: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(kind, "get_compiled_call", fails)
    with pytest.raises(ModelError, match=r"--compiled does not work .*RuntimeError: no C\+\+ compiler.*leave it out"):
        autoprune.speed(tiny, compiled=True, **FEW)


def test_memory_that_runs_out_has_a_remedy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(tiny_model()), "generate", fails)
    with pytest.raises(ShortageError, match="fewer models at a time, --batch_size"):
        autoprune.speed(tiny, **FEW)
