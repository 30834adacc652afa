"""What is measured and pruned is the model that ``from_pretrained`` loads, however its files lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from configs import DENSE, EXPERTS, in_bfloat16, tiny_ids, tiny_model
from runs import open_store, prune
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from autoprune.errors import ModelError
from autoprune.model.walk import walk
from autoprune.steps.sparsegpt import SparseGPT
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.complete import check_complete
from autoprune.storage.skeleton import running_dtype

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def saved(directory: Path, name: str = "llama", **extra: Any) -> Path:
    tiny_model(name, **extra).save_pretrained(directory)
    return directory


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def store_as(directory: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / name, {"format": "pt"})


def configure(directory: Path, **entries: Any) -> None:
    path = directory / "config.json"
    found = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def theirs(directory: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        return model(input_ids=tiny_ids(2), use_cache=False).logits  # type: ignore[no-any-return]


def ours(directory: Path, *, resident: bool) -> Tensor:
    store = open_store(directory, resident=resident)
    check_complete(store.skeleton)
    with torch.no_grad():
        for block in store.anatomy.blocks:
            store.load(block.index)
        return store.logits(tiny_ids(2))


def same(directory: Path) -> None:
    """The very numbers, whether the whole model is held or one block at a time."""
    expected = theirs(directory)
    for resident in (True, False):
        found = ours(directory, resident=resident)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def own_head(directory: Path) -> None:
    saved(directory, tie_word_embeddings=False)
    configure(directory, tie_word_embeddings=True)


def own_head_that_is_equal(directory: Path) -> None:
    saved(directory, tie_word_embeddings=True)
    store_as(directory, held := stored(directory), "other.safetensors")
    store_as(directory, {**held, HEAD: held[EMBEDDING].clone()})
    (directory / "other.safetensors").unlink()


def equal_once_rounded(directory: Path) -> None:
    """As they run, in bfloat16, head and embedding are one; as they are stored, not quite."""
    saved(directory, tie_word_embeddings=True)
    held = {**stored(directory)}
    embedding = held[EMBEDDING].bfloat16().float()
    store_as(directory, {**held, EMBEDDING: embedding, HEAD: embedding * (1 + 1e-6)})
    configure(directory, dtype="bfloat16")


def only_the_head(directory: Path) -> None:
    saved(directory, tie_word_embeddings=True)
    held = stored(directory)
    held[HEAD] = held.pop(EMBEDDING)
    store_as(directory, held)


def another_file(directory: Path) -> None:
    saved(directory)
    store_as(directory, {name: tensor * 1.5 for name, tensor in stored(directory).items()}, "named.safetensors")
    configure(directory, transformers_weights="named.safetensors")


def another_index(directory: Path) -> None:
    saved(directory)
    held = stored(directory)
    store_as(directory, {name: tensor * 1.5 for name, tensor in held.items()}, "a.safetensors")
    weight_map = dict.fromkeys(held, "a.safetensors")
    (directory / "my.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    configure(directory, transformers_weights="my.safetensors.index.json")


def twice_in_shards(directory: Path) -> None:
    """The index says the first; transformers takes what it reads last."""
    saved(directory)
    held = stored(directory)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    store_as(directory, held, names[0])
    store_as(directory, {"model.norm.weight": held["model.norm.weight"] * 3}, names[1])
    (directory / "model.safetensors").unlink()
    weight_map = {**dict.fromkeys(held, names[0]), "model.layers.0.mlp.up_proj.weight": names[0]}
    weight_map["model.layers.1.mlp.up_proj.weight"] = names[1]  # where it is not: it is found all the same
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shards_in_folders(directory: Path) -> None:
    saved(directory)
    held = stored(directory)
    names = ["model-00001-of-00002.safetensors", "more/of it/model-00002.safetensors"]
    (directory / "more/of it").mkdir(parents=True)
    weight_map = {name: names[number % 2] for number, name in enumerate(held)}
    for name in names:
        store_as(directory, {key: held[key] for key in held if weight_map[key] == name}, name)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def values_that_nothing_reads(directory: Path) -> None:
    saved(directory)
    store_as(directory, {**stored(directory), "model.causal_mask": torch.full((8, 8), float("-inf")).triu(1)})


def adapter_beside(directory: Path) -> None:
    saved(directory)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    store_as(directory, {"base_model.model.lora_A.weight": torch.ones(2, 2)}, "adapter_model.safetensors")


def half_with_wide_vectors(directory: Path) -> None:
    """As QLoRA merges leave a model: more tensors are float32, more weights are not."""
    in_bfloat16(tiny_model("llama")).save_pretrained(directory)
    store_as(directory, {n: t.float() if t.dim() == 1 else t for n, t in stored(directory).items()})


def half_without_a_word_in_the_config(directory: Path) -> None:
    half_with_wide_vectors(directory)
    configure(directory, dtype=None, torch_dtype=None)


def stored_wider_than_it_runs(directory: Path) -> None:
    saved(directory)
    configure(directory, dtype="bfloat16")


CASES: list[Callable[[Path], None]] = [
    own_head,
    own_head_that_is_equal,
    equal_once_rounded,
    only_the_head,
    another_file,
    another_index,
    twice_in_shards,
    shards_in_folders,
    values_that_nothing_reads,
    adapter_beside,
    half_with_wide_vectors,
    half_without_a_word_in_the_config,
    stored_wider_than_it_runs,
]


@pytest.fixture(autouse=True)
def silent_transformers() -> Any:
    """It warns of a head that is not tied; here that is meant."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_measured_is_what_transformers_loads(tmp_path: Path, case: Callable[[Path], None]) -> None:
    case(tmp_path / "model")
    same(tmp_path / "model")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", [*DENSE, *EXPERTS])
def test_every_architecture_tied_and_untied_in_half_precision_with_wide_norms(
    tmp_path: Path, name: str, tied: bool
) -> None:
    directory = tmp_path / "model"
    in_bfloat16(tiny_model(name, tie_word_embeddings=tied)).save_pretrained(directory)
    store_as(directory, {n: t.float() if "norm" in n and t.dim() == 1 else t for n, t in stored(directory).items()})
    same(directory)


@pytest.mark.parametrize(
    "case",
    [another_file, another_index, shards_in_folders, adapter_beside, own_head, only_the_head],
    ids=lambda c: c.__name__,
)
def test_a_pruned_copy_is_loaded_as_it_was_measured(tmp_path: Path, case: Callable[[Path], None]) -> None:
    from autoprune import prune as prune_model

    case(tmp_path / "model")
    save_file({"input_ids": tiny_ids(8)}, tmp_path / "ids.safetensors")
    found = prune_model(
        tmp_path / "model",
        sparsity_ratio=0.5,
        calibration_data=str(tmp_path / "ids.safetensors"),
        eval_data=str(tmp_path / "ids.safetensors"),
        seqlen=tiny_ids().shape[1],
        nsamples=8,
        save_model=str(tmp_path / "out"),
    )
    same(tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter_*"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(input_ids=tiny_ids(8), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tiny_ids(8)[:, 1:].flatten())
    assert found.perplexity["ids.safetensors"] == pytest.approx(float(losses.exp()), rel=1e-5)


def test_new_weights_are_rounded_as_they_will_be_stored(tmp_path: Path) -> None:
    """Each to the dtype of its own tensor, so that the blocks behind see what will be loaded."""
    half_with_wide_vectors(tmp_path / "model")
    held = stored(tmp_path / "model")
    wide = "model.layers.0.mlp.down_proj.weight"
    store_as(tmp_path / "model", {**held, wide: held[wide].float()})
    written: dict[str, Tensor] = {}
    store = open_store(tmp_path / "model", written, dtype="float32", resident=True)
    prune(store, (SparseGPT(),), tiny_ids())
    parameters = dict(store.model.named_parameters())
    for name in held:
        if name in written and written[name].dim() == 2:
            assert written[name].dtype == (torch.float32 if name == wide else torch.bfloat16)
            assert torch.equal(parameters[name], written[name].float()), name


def test_dtype_is_chosen_as_transformers_chooses(tmp_path: Path) -> None:
    half_with_wide_vectors(tmp_path / "model")
    for stated in ("bfloat16", "float16", "float32", None):
        configure(tmp_path / "model", dtype=stated, torch_dtype=None)
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype
        assert running_dtype(Checkpoint.open(tmp_path / "model"), "auto") == expected


def test_an_adapter_beside_weights_is_refused_where_transformers_would_apply_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_beside(tmp_path / "model")
    assert "left out" in Checkpoint.open(tmp_path / "model").note
    monkeypatch.setattr("autoprune.storage.weight_files.find_spec", lambda _: object())
    with pytest.raises(ModelError, match=r"a PEFT adapter beside the weights.*Merge it once"):
        Checkpoint.open(tmp_path / "model")


def test_what_the_model_reads_must_be_finite(tmp_path: Path) -> None:
    from autoprune.storage.values import ValueCheck

    directory = saved(tmp_path / "model")
    held = stored(directory)
    held["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    store_as(directory, held)
    store = open_store(directory)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        ValueCheck(store.skeleton.checkpoint, store.skeleton.used).finish()
    values_that_nothing_reads(tmp_path / "masked")
    store = open_store(tmp_path / "masked")
    assert ValueCheck(store.skeleton.checkpoint, store.skeleton.used).finish()
    assert len(list(walk(store))) == len(store.anatomy.blocks)
