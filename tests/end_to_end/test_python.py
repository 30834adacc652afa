"""Python as the ecosystem writes it: texts, tokenizers and recipes as objects, results that are read at a glance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

import autoprune
from autoprune import DataError, ModelError, OutputError, RecipeError
from autoprune.events import BlockResult, Event, Notice, Phase
from end_to_end.tiny import (
    SEQLEN,
    Texts,
    flags,
    run_classic,
    same_bits,
    save_tiny,
    tensors,
    tiny_model,
    tiny_tokenizer,
)

Options = dict[str, Any]
SETTINGS: Options = {"nsamples": 8, "seqlen": SEQLEN, "prune_method": "wanda"}


def words(path: Path) -> list[str]:
    """A text as the one document of a list."""
    return [path.read_text(encoding="utf-8")]


def ids(path: Path) -> torch.Tensor:
    return torch.tensor(tiny_tokenizer()(words(path), verbose=False)["input_ids"][0])


def test_texts_of_any_kind_prune_alike(tiny: Path, texts: Texts, tmp_path: Path) -> None:
    """One long document gives the same bits as a list and as a dataset, a long row of ids those of a text file; the
    record says what it was.
    """
    options: Options = {"sparsity_ratio": 0.5, **SETTINGS}
    rows = ids(texts.heldout)[: 20 * SEQLEN].view(20, SEQLEN)
    listed = autoprune.prune(
        tiny,
        save_model=tmp_path / "a",
        calibration_data=words(texts.calibration),
        eval_data={"heldout": words(texts.heldout), "rows": rows},
        **options,
    )
    assert list(listed.perplexity) == ["heldout", "rows"]
    assert listed.perplexity["heldout"] == listed.perplexity["rows"]
    record = json.loads((tmp_path / "a/autoprune.json").read_text(encoding="utf-8"))
    assert record["calibration"]["source"] == "list of 1 string"
    assert record["recipe"]["calibration"]["calibration_data"].startswith("list of 1 string (sha256 ")
    autoprune.prune(tiny, save_model=tmp_path / "b", calibration_data=texts.calibration, **options)
    for folder, data in (
        ("a", Dataset.from_dict({"text": words(texts.calibration)})),
        ("b", ids(texts.calibration).tolist()),
    ):
        state = autoprune.prune(tiny, calibration_data=data, **options).model.state_dict()
        assert all(same_bits(state[name], tensor) for name, tensor in tensors(tmp_path / folder).items())


def test_a_loader_says_how_long_its_rows_are(tiny: Path, texts: Texts) -> None:
    rows = [{"input_ids": row} for row in ids(texts.calibration)[: 6 * SEQLEN].view(6, SEQLEN)]
    loader: DataLoader[Any] = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    result = autoprune.prune(tiny_model(), sparsity=0.5, steps="wanda", calibration_data=loader, eval_data=loader)
    assert result.recipe.calibration.nsamples == 6
    assert result.row.perplexity[0].windows == 6


def test_resume_with_other_texts_is_another_run(tiny: Path, texts: Texts, tmp_path: Path) -> None:
    options: Options = {"sparsity_ratio": 0.5, "save_model": tmp_path / "out", **SETTINGS}
    autoprune.prune(tiny, calibration_data=words(texts.calibration), **options)
    again = autoprune.prune(tiny, calibration_data=words(texts.calibration), resume=True, **options)
    assert again.warnings == (f"{tmp_path / 'out'} is complete already; going on with what comes after",)
    with pytest.raises(OutputError, match="the result of another run: calibration"):
        autoprune.prune(tiny, calibration_data=words(texts.heldout), resume=True, **options)


def test_compare_takes_texts_too(tiny: Path, texts: Texts, tmp_path: Path) -> None:
    options: Options = {"seqlen": SEQLEN, "tokenizer": tiny}
    one, two = (
        autoprune.compare(tiny_model(), tiny_model(), eval_data=data, save=tmp_path / name, **options)
        for name, data in (("a", words(texts.heldout)), ("b", {"mine": ids(texts.heldout)}))
    )
    assert one.models[0].shifts["list of 1 string"] == two.models[0].shifts["mine"]
    assert len(repr(one).splitlines()) == 2
    with pytest.raises(OutputError, match="is of another comparison"):
        autoprune.compare(tiny_model(), tiny_model(), eval_data=["w1 w2"], save=tmp_path / "a", **options)


@pytest.mark.parametrize("kind", ["path", "word", "object"])
def test_tokenizer_by_its_name(tiny: Path, texts: Texts, kind: str) -> None:
    tokenizer = {"path": tiny, "word": str(tiny), "object": tiny_tokenizer()}[kind]
    for model in (tiny_model(), tiny):
        (measured,) = autoprune.evaluate(model, tokenizer=tokenizer, eval_data=texts.heldout, seqlen=SEQLEN)
        assert measured.windows == 330 // SEQLEN


def test_a_tokenizer_that_is_given_is_the_one_that_is_used(tmp_path: Path, texts: Texts) -> None:
    directory = save_tiny(tmp_path / "model")
    for file in directory.glob("tokenizer*"):
        file.unlink()
    options: Options = {"eval_data": words(texts.heldout), "seqlen": SEQLEN}
    with pytest.raises(ModelError, match="no tokenizer can be read"):
        autoprune.evaluate(directory, **options)
    assert autoprune.evaluate(directory, tokenizer=tiny_tokenizer(), **options).texts[0].windows == 330 // SEQLEN


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (3, r"tokenizer is of type int \(3\); give a transformers tokenizer"),
        ("org/gone", "tokenizer 'org/gone': there is"),
    ],
)
def test_tokenizers_that_are_none(texts: Texts, tokenizer: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        autoprune.evaluate(tiny_model(), tokenizer=tokenizer, eval_data=texts.heldout)


def test_a_recipe_is_run(tiny: Path, texts: Texts, tmp_path: Path) -> None:
    """From options, from the record of a result, from a file; with texts and models of this process in their place."""
    recipe = autoprune.Recipe.of(
        model=str(tiny), sparsity="2:4", steps="wanda,refit", calibration_data=str(texts.calibration), nsamples=8,
        seqlen=SEQLEN, save_model=tmp_path / "a", ignore=["lm_head"],
    )  # fmt: skip
    assert eval(repr(recipe), {"Recipe": autoprune.Recipe}) == recipe
    first = autoprune.run(recipe)
    again = autoprune.Recipe.read(tmp_path / "a/autoprune.json", save_model=str(tmp_path / "b"))
    autoprune.run(again)
    assert all(same_bits(t, tensors(tmp_path / "b")[name]) for name, t in tensors(tmp_path / "a").items())
    (tmp_path / "recipe.toml").write_text(
        '[pruning]\nsparsity = "2:4"\n[chosen]\nsteps = ["wanda", "refit"]\n[calibration]\nnsamples = 8\n'
        f"seqlen = {SEQLEN}\n", encoding="utf-8",
    )  # fmt: skip
    held = tiny_model()
    mine = autoprune.run(
        autoprune.Recipe.read(tmp_path / "recipe.toml"),
        model=held,
        tokenizer=tiny,
        calibration_data=texts.calibration,
        eval_data={"mine": words(texts.heldout)},
    )
    assert mine.model is held
    assert list(mine.perplexity) == ["mine"]
    assert mine.summary is not None and first.summary is not None
    assert mine.summary.layers == first.summary.layers


def test_recipe_on_the_command_line(tiny: Path, texts: Texts, tmp_path: Path, capsys: Any) -> None:
    answer = run_classic(capsys, flags(tiny, texts, eval_data=None, save_model=tmp_path / "a", seed=3))
    assert answer.status == 0, answer.err
    more = ["--save_model", str(tmp_path / "b"), "--recipe", str(tmp_path / "a/autoprune.json")]
    assert run_classic(capsys, [*more, "--sparsity_type", "2:4"]).status == 0
    record = json.loads((tmp_path / "b/autoprune.json").read_text(encoding="utf-8"))
    assert (record["recipe"]["pruning"]["sparsity_type"], record["seed"]) == ("2:4", 3)
    assert run_classic(capsys, [*more[2:], "--sparsity", "0.5", "--save_model", str(tmp_path / "c")]).status == 0
    for text, says in (("{", "is no JSON"), ("[1]", "holds a list"), ('{"nonsense": 1}', "unknown option 'nonsense'")):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        answer = run_classic(capsys, ["--model", str(tiny), "--recipe", str(tmp_path / "bad.json")])
        assert answer.status == 2
        assert says in answer.err
    with pytest.raises(RecipeError, match=r"--recipe .*gone.toml: can't be read"):
        autoprune.Recipe.read(tmp_path / "gone.toml")


def test_a_recipe_names_texts_that_it_can_not_hold(tiny: Path, texts: Texts, tmp_path: Path) -> None:
    autoprune.prune(
        tiny, sparsity_ratio=0.5, calibration_data=words(texts.calibration), save_model=tmp_path / "a", **SETTINGS
    )
    recipe = autoprune.Recipe.read(tmp_path / "a/autoprune.json")
    with pytest.raises(DataError, match="these were handed over in Python and are in no file"):
        autoprune.run(recipe)
    autoprune.run(recipe, calibration_data=words(texts.calibration))


def test_what_a_user_should_know_reaches_python(tiny: Path, texts: Texts, capfd: pytest.CaptureFixture[str]) -> None:
    """Shown in a log, once and with nothing else, unless it is to be quiet; events go to whoever asks for them."""
    seen: list[Event] = []
    options: Options = {"calibration_data": texts.calibration, "sparsity_type": "1:4", **SETTINGS}
    logged = autoprune.prune(tiny, **options)
    assert capfd.readouterr() == ("", "".join(f"autoprune: {text}\n" for text in logged.warnings))
    silent = autoprune.prune(tiny, quiet=True, **options)
    told = autoprune.prune(tiny, emit=seen.append, **options)
    assert logged.warnings == silent.warnings == told.warnings == tuple(e.text for e in seen if isinstance(e, Notice))
    assert any("1 of every 4" in text for text in told.warnings), told.warnings
    assert {Phase, BlockResult} <= {type(event) for event in seen}
    assert "warning: 1:4" in repr(told)
    assert capfd.readouterr() == ("", "")


def test_results_fit_a_screen_and_show_tables(texts: Texts, tmp_path: Path) -> None:
    deep = tiny_model(num_hidden_layers=12)
    options: Options = {"tokenizer": tiny_tokenizer(), "seqlen": SEQLEN, "eval_data": texts.heldout}
    dense = autoprune.evaluate(deep, **options)
    result = autoprune.prune(
        deep,
        sparsity_type="1:4",
        calibration_data=texts.calibration,
        nsamples=8,
        save_model=tmp_path / "out",
        **options,
    )
    shift = autoprune.compare(tiny_model(num_hidden_layers=12), deep, unrelated=True, **options)
    seen = autoprune.inspect(tmp_path / "out", seqlen=SEQLEN)
    for shown in (dense, result, shift, seen, result.row, result.summary, result.recipe, shift.models, dense.texts):
        lines = repr(shown).splitlines()
        assert sum(-(-len(line) // 100) for line in lines) <= 20, repr(shown)
    for shown in (dense, result, shift, seen):
        assert "<table>" in shown._repr_html_()
    assert type(dense.perplexity) is type(result.perplexity) is dict
    assert f"written to {tmp_path / 'out'}" in repr(result)
    assert "AutoModelForCausalLM.from_pretrained(result.directory)" in repr(result)
    assert str(tmp_path / "out") in result._repr_html_()


def test_layers_are_chosen_by_patterns(tiny: Path, texts: Texts) -> None:
    options: Options = {"sparsity_ratio": 0.5, "calibration_data": texts.calibration, **SETTINGS}
    chosen = autoprune.prune(tiny, include="*.mlp.*", ignore=["*.down_proj", "lm_head", "*embed*"], **options)
    assert chosen.summary is not None
    assert {layer.short_name for layer in chosen.summary.layers} == {"mlp.gate_proj", "mlp.up_proj"}
    for bad, says in (
        ({"include": "lm_head"}, "--include 'lm_head' matches no layer"),
        ({"ignore": "model.layers.0"}, "--ignore 'model.layers.0' matches no layer"),
        ({"ignore": "*.lm_heads"}, "matches no layer"),
        ({"include": "*.q_proj", "ignore": "*.self_attn.*"}, "leaves no layer to prune"),
    ):
        with pytest.raises(RecipeError, match=re.escape(says)):
            autoprune.prune(tiny, **options, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("door", ["rotate", "shrink", "speed", "inspect", "prune", "compare"])
def test_models_that_are_no_words_and_options_of_the_wrong_kind(door: str, tmp_path: Path) -> None:
    call: Any = getattr(autoprune, door)
    places: Options = {"out": tmp_path / "out"} if door in ("rotate", "shrink") else {}
    places |= {"pruned": "demo"} if door == "compare" else {}
    model: Any = 5 if door in ("prune", "compare") else tiny_model()
    with pytest.raises(RecipeError, match="give its hub id or its directory"):
        call(model, **places, **({"blocks": 1} if door == "shrink" else {}))
    own = {"rotate": "rotate_steps", "shrink": "blocks", "speed": "rounds"}
    with pytest.raises(RecipeError, match="is of the wrong kind"):
        call("demo", **places, **{own.get(door, "seqlen"): "oops"})


def test_run_takes_recipes_and_tab_completes() -> None:
    run: Any = autoprune.run
    with pytest.raises(RecipeError, match="run takes a Recipe"):
        run({"model": "demo"})
    assert {"prune", "Recipe", "events"} <= set(dir(autoprune)) and "os" not in dir(autoprune)
