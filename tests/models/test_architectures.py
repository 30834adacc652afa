"""Every architecture, on a tiny random model: found, replayed bit for bit, pruned, saved; no code per family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from configs import DENSE, EXPERTS, REFUSED, WRAPPED, in_bfloat16, tiny_ids, tiny_model
from families import SHELLS, TYPES, judge
from more import MORE, MORE_EXPERTS
from page import PAGE as PAGE_FILE
from page import count, read_page
from runs import BARBER, open_store, prune, write_checkpoint
from safetensors.torch import load_file
from structure import structure
from torch import Tensor
from transformers import AutoModelForCausalLM

from autoprune.model.anatomy import check_coverage, examine
from autoprune.model.calls import replaced_forward
from autoprune.model.replay import replay_check
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs
from autoprune.results.outcome import LayerOutcome
from autoprune.steps.base import Step
from autoprune.steps.wanda import Wanda
from autoprune.storage.store import CheckpointStore

PAGE = read_page()
REMEDY = "run `python scripts/list_architectures.py`"
# Those that must work whatever else does.
NAMED = (
    "llama mistral qwen2 qwen3 gemma2 gemma3 phi phi3 olmo2 stablelm cohere cohere2 glm4 smollm3 opt gpt2 gpt_neo gptj"
    " gpt_neox bloom falcon mpt codegen starcoder2 granite nemotron persimmon exaone4 mamba mixtral qwen3_moe gpt_oss"
    " llama4 deepseek_v3 qwen3_next"
)

# Whose blocks have what older ones have not: several residual streams, indexers, token ids, shells.
NEWEST = [
    *("deepseek_v4", "qwen3_5_moe", "qwen4_exp", "hy_v3", "hy_v4", "gemma4_unified", "glm_moe_dsa", "lfm3"),
    *("minimax_m3_vl", "granitemoe_swa", "qwen3_vl", "qwen2_5_vl", "mistral3", "mistral4"),
]


def test_the_named_architectures_are_among_those_tested() -> None:
    assert set(NAMED.split()) <= {name.split("/")[0] for name in [*DENSE, *EXPERTS, *WRAPPED]}


def test_all_that_is_tried_is_on_the_page() -> None:
    assert {*DENSE, *MORE, *EXPERTS, *MORE_EXPERTS, *WRAPPED, *REFUSED} <= set(PAGE), REMEDY
    assert {row.get("replay", "exact") for row in PAGE.values()} == {"exact"}


def test_the_page_counts_the_types_of_the_installed_transformers() -> None:
    """And leaves none without a verdict."""
    if f"transformers {transformers.__version__} has" not in PAGE_FILE.read_text(encoding="utf-8"):
        pytest.skip("the page is of another version of transformers; scripts/list_architectures.py counts this one")
    words = {name: "refused" if "reason" in row else "works" for name, row in PAGE.items()}
    assert {*TYPES, *SHELLS} <= set(words), REMEDY
    assert count(words) in PAGE_FILE.read_text(encoding="utf-8"), REMEDY


@pytest.mark.parametrize("name", NEWEST)
def test_the_newest_families_work(name: str) -> None:
    if name not in {*TYPES, *SHELLS}:
        pytest.skip(f"this version of transformers has no {name}")
    verdict = judge(name)
    assert verdict.word == "works", verdict
    assert not any(word in verdict.row["sub-blocks"] for word in ("indexer", "hyper_connection"))


@pytest.fixture(scope="module", params=[*DENSE, *EXPERTS])
def name(request: pytest.FixtureRequest) -> str:
    """An architecture."""
    return str(request.param)


@pytest.fixture(scope="module")
def saved(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the architecture, as ``save_pretrained`` writes it."""
    directory = tmp_path_factory.mktemp(name.replace("/", "-"))
    tiny_model(name).save_pretrained(directory)
    return directory


@torch.no_grad()
def logits_of_replay(store: CheckpointStore, ids: Tensor) -> Tensor:
    """Blocks one by one on the recorded arguments, then final norm and head."""
    inputs, stream = prepare_inputs(store, ids, len(ids), Place())
    hidden = stream[0]
    for block in store.anatomy.blocks:
        store.load(block.index)
        hidden = inputs.calls.of(0, block.index)(block.module, hidden)
        store.release(block.index)
    modules = [block.module for block in store.anatomy.blocks]
    with replaced_forward(modules, [lambda *_args, **_kwargs: inputs.mirror.wrap(hidden)] * len(modules)):
        return store.logits(ids)


def test_the_anatomy_covers_the_blocks(name: str, saved: Path) -> None:
    anatomy = open_store(saved).anatomy
    assert structure(anatomy).items() <= PAGE[name].items(), REMEDY
    assert len(anatomy.blocks) == len({id(block.module) for block in anatomy.blocks}) >= 2
    assert all(block.layers for block in anatomy.blocks)
    check_coverage(anatomy, allow_partial=False)
    for block in anatomy.blocks:
        assert block.reached + sum(count for _, count in block.unreached) == block.parameters


@torch.no_grad()
def check_replay(saved: Path, dtype: str = "auto") -> None:
    """Block by block the logits are those of the model that ``from_pretrained`` makes, and the check says so."""
    ids = tiny_ids(3)
    theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype).eval()(input_ids=ids, use_cache=False).logits
    assert torch.equal(logits_of_replay(open_store(saved, dtype=dtype), ids), theirs)
    assert replay_check(open_store(saved, dtype=dtype), ids).exact


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replay_is_exact(saved: Path, dtype: str) -> None:
    check_replay(saved, dtype)


@pytest.mark.parametrize("methods", [(Wanda(),), (Wanda(), BARBER)], ids=["wanda", "wanda+barber"])
def test_pruned_written_and_loaded_again(name: str, saved: Path, methods: tuple[Step, ...], tmp_path: Path) -> None:
    sub_blocks = check_pruned(saved, methods, tmp_path)
    if BARBER in methods:
        assert sub_blocks == {1 if name == "mamba" else 2}


@pytest.mark.parametrize("name", [*MORE, *MORE_EXPERTS])
def test_more_in_their_usual_precision(name: str, tmp_path: Path) -> None:
    saved = tmp_path / "dense"
    in_bfloat16(tiny_model(name)).save_pretrained(saved)
    anatomy = open_store(saved).anatomy
    assert structure(anatomy).items() <= PAGE[name].items(), REMEDY
    check_coverage(anatomy, allow_partial=False)
    assert anatomy.has_experts == (name in MORE_EXPERTS)
    check_replay(saved)
    assert check_pruned(saved, (Wanda(), BARBER), tmp_path / "pruned") <= {1, 2, 3, 5}


def check_pruned(saved: Path, methods: tuple[Step, ...], target: Path) -> set[int]:
    """Prunes, writes to ``target`` and loads again; returns the numbers of sub-blocks that LLM-Barber found."""
    written: dict[str, Tensor] = {}
    store = open_store(saved, written)
    results = prune(store, methods, tiny_ids())
    outcomes = {layer.name: layer for result in results for layer in result.layers}
    assert set(outcomes) == {block.full_name(layer) for block in store.anatomy.blocks for layer in block.layers}
    for outcome in outcomes.values():
        assert 2 * outcome.zeros == outcome.weights, outcome
        assert outcome.error is not None and 0 < outcome.error < 1, outcome

    original = load_file(saved / "model.safetensors")
    assert set(written).isdisjoint(store.outside) and {*written, *store.outside} == set(original)
    write_checkpoint(saved, target, {**original, **written})
    check_parameters(saved, target, outcomes)
    return {len(result.sub_blocks) for result in results}


def check_parameters(dense: Path, pruned: Path, outcomes: Mapping[str, LayerOutcome]) -> None:
    """Loaded by transformers, layers hold the stated zeros and the dense survivors; everything else is as it was."""
    before, after = (AutoModelForCausalLM.from_pretrained(directory) for directory in (dense, pruned))
    layers = set()
    for ours, theirs in zip(examine(after).blocks, examine(before).blocks, strict=True):
        for layer, dense_layer in zip(ours.layers, theirs.layers, strict=True):
            keep = layer.matrix != 0
            assert int((~keep).sum()) == outcomes[ours.full_name(layer)].zeros
            assert torch.equal(layer.matrix, dense_layer.matrix * keep)
            layers.add(f"{ours.name}.{layer.parameter_name}")
    others = {name: p for name, p in before.state_dict().items() if name not in layers}
    assert others and all(torch.equal(after.state_dict()[name], value) for name, value in others.items())
