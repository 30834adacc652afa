"""The Python front door: a path or a model in memory, options as Python values, results as objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import autoprune
from autoprune import AutoPruneError, DataError, ModelError, OutputError, RecipeError
from end_to_end.tiny import (
    LAYERS,
    SEQLEN,
    Texts,
    is_pruned_layer,
    plain_perplexity,
    same_bits,
    save_tiny,
    tensors,
    tiny_model,
    tiny_tokenizer,
)

Options = dict[str, Any]


@pytest.fixture
def options(texts: Texts) -> Options:
    """Paths as paths and lists as lists, as one writes them in Python."""
    return {
        "calibration_data": texts.calibration,
        "eval_data": [texts.heldout],
        "nsamples": 8,
        "seqlen": SEQLEN,
        "sparsity_ratio": 0.5,
    }


def test_path(tiny: Path, texts: Texts, options: Options, tmp_path: Path) -> None:
    result = autoprune.prune(tiny, prune_method="wanda", save_model=tmp_path / "out", **options)
    assert result.directory == tmp_path / "out"
    with pytest.raises(ModelError, match=r"not in memory: written to .*from_pretrained\(result\.directory\)"):
        _ = result.model
    assert len(result.summary.layers) == LAYERS
    assert result.summary.sparsity == 0.5
    assert result.perplexity == {
        "heldout.txt": pytest.approx(plain_perplexity(tmp_path / "out", texts.heldout), rel=1e-12)
    }


def test_path_without_a_place_to_write_gives_the_model(tiny: Path, options: Options, tmp_path: Path) -> None:
    written = autoprune.prune(str(tiny), save_model=str(tmp_path / "out"), **options)
    result = autoprune.prune(str(tiny), **options)
    assert result.directory is None
    assert isinstance(result.model, PreTrainedModel)
    assert result.perplexity == written.perplexity
    result.model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_perplexity_is_measured_only_if_asked_for(tiny: Path, options: Options) -> None:
    del options["eval_data"]
    assert autoprune.prune(tiny, **options).perplexity == {}


def test_model_in_memory_is_pruned_in_place(tiny: Path, options: Options, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    result = autoprune.prune(model, tokenizer=tiny_tokenizer(), **options)
    assert result.model is model
    from_disk = autoprune.prune(tiny, save_model=tmp_path / "out", **options)
    state = model.state_dict()
    assert all(same_bits(state[name], tensor) for name, tensor in tensors(tmp_path / "out").items())
    assert result.perplexity == from_disk.perplexity
    assert result.summary.layers == from_disk.summary.layers


@pytest.mark.parametrize(
    "more",
    [{"prune_method": "sparsegpt"}, {"prune_barber": True, "prune_granularity": "layer", "threshold": 0.3}],
    ids=str,
)
def test_model_in_memory_agrees_with_the_same_model_on_disk(tiny: Path, options: Options, more: Options) -> None:
    held = AutoModelForCausalLM.from_pretrained(tiny)
    autoprune.prune(held, tokenizer=tiny_tokenizer(), **options, **more)
    opened = autoprune.prune(tiny, **options, **more).model
    assert all(same_bits(a, b) for a, b in zip(held.state_dict().values(), opened.state_dict().values(), strict=True))


def test_model_in_memory_can_be_saved(tiny: Path, texts: Texts, options: Options, tmp_path: Path) -> None:
    result = autoprune.prune(tiny_model(), tokenizer=tiny_tokenizer(), save_model=tmp_path / "out", **options)
    assert result.directory == tmp_path / "out"
    (measured,) = autoprune.evaluate(tmp_path / "out", eval_data=texts.heldout, seqlen=SEQLEN)
    assert {"heldout.txt": measured.perplexity} == result.perplexity
    manifest = json.loads((tmp_path / "out/autoprune.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(manifest["written"])
    autoprune.prune(
        tiny_model(), tokenizer=tiny_tokenizer(), save_model=tmp_path / "out", overwrite=True, delete=True, **options
    )
    assert not (tmp_path / "out").exists()


def test_evaluate(tiny: Path, texts: Texts) -> None:
    expected = plain_perplexity(tiny, texts.heldout)
    for model, tokenizer in (
        (tiny, None),
        (str(tiny), None),
        (AutoModelForCausalLM.from_pretrained(tiny), tiny_tokenizer()),
    ):
        (measured,) = autoprune.evaluate(model, tokenizer=tokenizer, eval_data=str(texts.heldout), seqlen=SEQLEN)
        assert measured.perplexity == pytest.approx(expected, rel=1e-12)
        assert (measured.source, measured.seqlen, measured.windows) == ("heldout.txt", SEQLEN, 330 // SEQLEN)


def test_a_model_that_was_measured_can_be_trained_on(tiny: Path, texts: Texts) -> None:
    """Measuring leaves a model as it was: gradients, mode and values."""
    model = AutoModelForCausalLM.from_pretrained(tiny).train()
    model.lm_head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    autoprune.evaluate(model, tokenizer=tiny_tokenizer(), eval_data=texts.heldout, seqlen=SEQLEN)
    assert (model.training, model.model.training, model.lm_head.training) == (True, True, False)
    assert all(p.requires_grad for p in model.parameters())
    assert all(same_bits(before[name], tensor) for name, tensor in model.state_dict().items())
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()


def test_one_word_is_not_taken_for_a_list_of_letters(tiny: Path, texts: Texts, options: Options) -> None:
    result = autoprune.prune(
        tiny, **{**options, "eval_data": f"{texts.heldout},{texts.calibration}", "ignore": "*.down_proj"}
    )
    assert list(result.perplexity) == ["heldout.txt", "calibration.txt"]
    assert not [layer for layer in result.summary.layers if "down_proj" in layer.name]
    assert result.recipe.pruning.ignore == ("*.down_proj",)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"sparsness": 0.5}, RecipeError, "unknown option 'sparsness'"),
        ({"sparsity": 0.5}, RecipeError, "--sparsity and --sparsity_ratio both name the target"),
        ({"sparsity_ratio": "half"}, RecipeError, "--sparsity_ratio 'half' is not a number"),
        ({"sparsity_ratio": True}, RecipeError, "--sparsity_ratio True is not a number"),
        ({"nsamples": "8"}, RecipeError, "--nsamples '8' is of the wrong kind; it must be a whole number"),
        ({"nsamples": 8.0}, RecipeError, "--nsamples 8.0 is of the wrong kind"),
        ({"threshold": "low"}, RecipeError, "--threshold 'low' is of the wrong kind; it must be a number"),
        ({"sparsity_type": None}, RecipeError, "--sparsity_type None is of the wrong kind; it must be a word"),
        ({"prune_barber": 1}, RecipeError, "--prune_barber 1 is of the wrong kind; it must be true or false"),
        ({"eval_data": 3}, DataError, "--eval_data: 3 is of type int; give a path or name, a list of strings"),
        ({"steps": 3}, RecipeError, "--steps 3 is no list of words"),
        (
            {"prune_metric": "WX"},
            RecipeError,
            "--prune_metric 'WX' is unknown (did you mean W?); choose from WD, W, D",
        ),
        ({"save_model": Path(__file__)}, OutputError, "a file of that name exists"),
        ({"calibration_data": "gone.txt"}, DataError, "--calibration_data gone.txt"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options(tiny: Path, options: Options, more: Options, error: type[AutoPruneError], says: str) -> None:
    with pytest.raises(error) as caught:
        autoprune.prune(tiny, **{**options, **more})
    assert says in str(caught.value)


def test_model_in_memory_without_its_tokenizer(options: Options) -> None:
    with pytest.raises(DataError, match="pass tokenizer="):
        autoprune.prune(tiny_model(), **options)


def test_model_in_memory_with_a_bad_weight(options: Options) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        autoprune.prune(model, tokenizer=tiny_tokenizer(), prune_method="magnitude", **options)
    assert all(same_bits(before[name], tensor) for name, tensor in model.state_dict().items())


def test_model_in_memory_and_pruned_model(tiny: Path, options: Options) -> None:
    with pytest.raises(RecipeError, match="--pruned_model works with a dense model on disk"):
        autoprune.prune(tiny_model(), tokenizer=tiny_tokenizer(), pruned_model=str(tiny), prune_barber=True, **options)


def test_module_that_is_no_language_model(options: Options) -> None:
    with pytest.raises(ModelError, match="Linear"):
        autoprune.prune(nn.Linear(4, 4), **options)


def test_model_in_memory_on_a_full_disk(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    model = tiny_model()
    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(OutputError, match="the disk is full"):
        autoprune.prune(model, tokenizer=tiny_tokenizer(), save_model=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_names_of_the_package(tiny: Path) -> None:
    for name in autoprune.__all__:
        assert getattr(autoprune, name).__name__ == ("autoprune.run" if name == "run" else name)
    assert set(autoprune.__all__) <= set(dir(autoprune))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        autoprune.prun  # noqa: B018


def test_inspect(tiny: Path) -> None:
    seen = autoprune.inspect(str(tiny), seqlen=SEQLEN)
    assert (seen.blocks, seen.block_list, seen.dtype) == (2, "model.layers", "float32")
    assert seen.parameters == sum(t.numel() for t in tensors(tiny).values())
    shared = {line.name: line.shared_with for line in seen.layers}
    assert shared["self_attn.q_proj"] == "k_proj, v_proj"
    assert shared["mlp.up_proj"] == "gate_proj"
    assert shared["mlp.down_proj"] == shared["self_attn.o_proj"] == ""
    reached = sum(t.numel() for name, t in tensors(tiny).items() if is_pruned_layer(name))
    inside = sum(t.numel() for name, t in tensors(tiny).items() if ".layers." in name)
    assert seen.coverage == reached / inside
    assert {"magnitude", "wanda", "sparsegpt", "wanda+barber"} <= {cost.method for cost in seen.costs}
    assert all(cost.bytes > 0 and cost.time for cost in seen.costs)


def test_inspect_a_mixture_without_pruning_it(tmp_path: Path) -> None:
    model = save_tiny(
        tmp_path / "mamba", tiny_model("mamba", hidden_size=16, state_size=16, time_step_rank=4, conv_kernel=8)
    )
    seen = autoprune.inspect(str(model), seqlen=SEQLEN)
    assert seen.coverage < 0.9
    assert any("A_log" in missed for missed in seen.unreached)
