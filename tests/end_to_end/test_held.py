"""Models in memory: what could not be pruned or saved is found before the first weight changes, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import random_unstructured
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertForMaskedLM

import autoprune
from autoprune.errors import ModelError, ShortageError
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.run.shortage import remedies, shortage_told
from end_to_end.tiny import SEQLEN, VOCABULARY, save_tiny, tiny_model


class Around(nn.Module):
    """A user's own module around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **named: Any) -> Any:
        return self.inner(**named)


class Int8(nn.Linear):
    """As bitsandbytes and others do it: a linear layer of integers and a scale."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features, bias=False)
        self.scale = old.weight.detach().abs().amax() / 127
        rounded = (old.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() * self.scale).T


class Packed(nn.Module):
    """As GPTQ and AWQ do it: no weight at all, but packed integers in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def quantised(model: Any, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    for block in model.model.layers:
        block.mlp.up_proj = make(block.mlp.up_proj)
    return model  # type: ignore[no-any-return]


def meta(model: nn.Module) -> nn.Module:
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight, device="meta"))  # type: ignore[union-attr, arg-type]
    return model


def with_adapter(model: nn.Module) -> nn.Module:
    """What peft's classes look like from outside: their module is peft's."""
    layer = type("LoraLayer", (nn.Module,), {"__module__": "peft.tuners.lora"})()
    model.model.layers[0].add_module("lora", layer)  # type: ignore[union-attr, index, operator]
    return model


def states_a_method(model: Any) -> nn.Module:
    model.config.quantization_config = {"quant_method": "hqq"}
    return model  # type: ignore[no-any-return]


HINDRANCES: dict[str, tuple[Callable[[Path], nn.Module], str]] = {
    "wrapper": (lambda d: Around(loaded(d)), r"is a wrapper around a model; give the model itself: model\.inner"),
    "parallel": (lambda d: nn.DataParallel(loaded(d)), r"give the model itself: model\.module"),
    "no model": (lambda _: nn.Sequential(nn.Linear(4, 4)), "is no transformers model"),
    "no head": (AutoModel.from_pretrained, "has no language-model head.*AutoModelForCausalLM"),
    "int8": (lambda d: quantised(loaded(d), Int8), r"up_proj\.weight is int8 in a Int8.*prune the original"),
    "packed": (lambda d: quantised(loaded(d), lambda _: Packed()), r"up_proj\.qweight is int32 in a Packed"),
    "by its config": (lambda d: states_a_method(loaded(d)), r"holds quantised weights \(hqq\)"),
    "offloaded": (
        lambda d: cpu_offload(loaded(d), execution_device=torch.device("cpu")),
        "elsewhere.*or give the model's directory",
    ),
    "meta": (lambda d: meta(loaded(d)), r"keeps lm_head\.weight elsewhere"),
    "masked": (lambda _: masked(), "fills in masked tokens"),
    "inference": (lambda _: in_inference_mode(), "was made under torch.inference_mode"),
    "method": (lambda d: quantised(loaded(d), lambda _: Method()), r"\.up_proj is a Method"),
    "mask": (
        lambda d: masked_by_torch(loaded(d)),
        r"computes the weight of .*down_proj .*torch\.nn\.utils\.prune\.remove",
    ),
    "parametrised": (lambda d: parametrised(loaded(d)), r"computes the weight of .*\.down_proj from other tensors"),
    "adapter": (lambda d: with_adapter(loaded(d)), r"holds a PEFT adapter.*merge_and_unload"),
}


class Method(nn.Module):
    """As torch's own dynamic quantisation does it: the weight is a method, and packed elsewhere."""

    def weight(self) -> torch.Tensor:
        return torch.zeros(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight().T


def masked_by_torch(model: Any) -> nn.Module:
    random_unstructured(model.model.layers[1].mlp.down_proj, "weight", amount=0.5)
    return model  # type: ignore[no-any-return]


def parametrised(model: Any) -> nn.Module:
    weight_norm(model.model.layers[1].mlp.down_proj)
    return model  # type: ignore[no-any-return]


def masked() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes)).eval()


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return tiny_model()


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    ids = torch.randint(3, VOCABULARY, (8, SEQLEN), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    return {
        "sparsity_ratio": 0.5,
        "calibration_data": str(tmp_path / "ids.safetensors"),
        "seqlen": SEQLEN,
        "nsamples": 8,
    }


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("name", HINDRANCES)
def test_what_can_not_be_pruned_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], name: str, method: str
) -> None:
    make, says = HINDRANCES[name]
    model = make(save_tiny(tmp_path / "model"))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ModelError, match=says):
        autoprune.prune(model, prune_method=method, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if not a.is_meta)


def test_what_can_not_be_saved_is_refused_before_the_work(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_model()
    model.generation_config.do_sample = False
    model.generation_config.temperature = 0.2
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(ModelError, match=r"generation_config that save_pretrained refuses.*leave out save_model"):
        autoprune.prune(model, save_model=tmp_path / "out", **options)
    assert torch.equal(before, model.model.layers[0].mlp.up_proj.weight)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert autoprune.prune(model, **options).summary.sparsity == 0.5, "without saving nothing is in the way"


def without_generation_config(model: Any) -> None:
    model.generation_config = None


def with_an_entry_of_generation(model: Any) -> None:
    model.config.temperature = 0.3


def with_an_entry_that_is_no_json(model: Any) -> None:
    model.config.mine = {1, 2}


def without_a_block(model: Any) -> None:
    model.model.layers = model.model.layers[:1]


def with_a_bias(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 64, bias=True)


def with_more_tokens(model: Any) -> None:
    model.lm_head = nn.Linear(32, VOCABULARY + 8, bias=False)


def tied_by_hand(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_generation_config, "has no generation_config"),
        (with_an_entry_of_generation, "a config that save_pretrained refuses .*temperature"),
        (with_an_entry_that_is_no_json, "a config that save_pretrained refuses .*JSON"),
        (without_a_block, r"by its config, model\.layers\.1\..* is not there"),
        (with_a_bias, r"by its config, model\.layers\.0\.mlp\.up_proj\.bias is more"),
        (with_more_tokens, r"by its config, lm_head\.weight has another shape"),
        (tied_by_hand, r"one tensor in two places, model\.embed_tokens\.weight and lm_head\.weight"),
    ],
)
def test_what_save_pretrained_would_refuse_or_change(
    tmp_path: Path, options: dict[str, Any], change: Callable[[Any], None], says: str
) -> None:
    model = tiny_model(tie_word_embeddings=False)
    change(model)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ModelError, match=f"{says}.*leave out save_model"):
        autoprune.prune(model, save_model=tmp_path / "out", **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_memory_that_runs_out_is_told_with_what_needs_less() -> None:
    recipe = recipe_from_flat({"model": "demo", "sparsity_ratio": 0.5, "batch_size": 64})
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(12, "Cannot allocate memory"),
    ):
        says = r"ran out.*--batch_size 1 \(now 64\).*--activations disk.*--memory"
        with pytest.raises(ShortageError, match=says), shortage_told(recipe):
            raise error
    with pytest.raises(RuntimeError, match="something else"), shortage_told(recipe):
        raise RuntimeError("something else")


def test_only_what_would_help_is_named() -> None:
    least = {"model": "demo", "sparsity_ratio": 0.5, "batch_size": 1, "activations": "disk", "memory": "8G"}
    (windows,) = remedies(recipe_from_flat({**least, "save_model": "out"}))
    assert "--nsamples" in windows
    assert "--save_model" in remedies(recipe_from_flat(least))[-1]
    assert len(remedies(recipe_from_flat({**least, "sparsity_ratio": 0}))) == 1, "nothing is saved by eval"


@pytest.mark.parametrize("door", ["compare", "evaluate", "inspect", "prune", "rotate", "shrink"])
def test_every_door_tells_what_needs_less_memory(door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    place = f"autoprune.run.{'api' if door in ('evaluate', 'prune') else door}"
    monkeypatch.setattr(f"{place}.open_model", full)
    more: dict[str, tuple[Any, ...]] = {"compare": ("demo",), "rotate": (tmp_path / "o",), "shrink": (tmp_path / "o",)}
    wanted: dict[str, Any] = {"shrink": {"blocks": 1}, "prune": {"sparsity_ratio": 0.5}}.get(door, {})
    with pytest.raises(
        ShortageError, match=r"memory ran out \(MemoryError\); .*(--batch_size 1|--nsamples|--dtype bfloat16)"
    ):
        getattr(autoprune, door)("demo", *more.get(door, ()), **wanted)
