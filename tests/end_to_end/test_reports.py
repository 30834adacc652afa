"""Tables on disk: none replaces another run's, what is measured is saved at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli.main import main
from autoprune.errors import ModelError
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.report.save import tables_claimed
from autoprune.results.types import TaskResult, ZeroShotResult
from autoprune.run import api, closing
from autoprune.run.labels import report_stem
from end_to_end.conftest import Refuse, Run
from end_to_end.tiny import SEQLEN, Texts, contents, flags, run_classic, save_tiny


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"nsamples": 3}, "calibration.nsamples was "),
        ({"seed": 1}, "calibration.seed was 0 and is 1"),
        ({"dtype": "bfloat16"}, "model.dtype was 'auto' and is 'bfloat16'"),
    ],
)
def test_table_of_another_run_is_not_replaced(
    refuse: Refuse, run: Run, tiny: Path, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    run(tiny, save_ppl=tmp_path / "ppl")
    refuse(
        tiny,
        f"--save_ppl {tmp_path / 'ppl'}: log_wanda_50pct.txt there is of another run: {says}",
        "--overwrite",
        **changed,
    )
    run(tiny, save_ppl=tmp_path / "ppl")
    run(tiny, save_ppl=tmp_path / "ppl", prune_method="magnitude")
    run(tiny, save_ppl=tmp_path / "ppl", overwrite=True, **changed)
    assert sorted(path.name for path in (tmp_path / "ppl").glob("*.txt")) == [
        "log_magnitude_50pct.txt",
        "log_wanda_50pct.txt",
    ]


def test_options_that_change_no_perplexity_make_no_other_table(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where caches lie, how the run behaves, and tasks that are measured besides."""
    monkeypatch.setattr(closing, "accuracy", lambda *_: None)
    monkeypatch.setattr("autoprune.evaluation.tasks.check_tasks", lambda *_: None)
    monkeypatch.setattr(api, "check_room", lambda *_, **__: None)
    run(tiny, save_ppl=tmp_path / "ppl")
    for more in (
        {"tasks": "boolq"},
        {"datasets_cache_dir": tmp_path / "cache"},
        {"batch_size": 3},
        {"activations": "disk"},
    ):
        run(tiny, save_ppl=tmp_path / "ppl", **more)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"save_ppl": "t", "tasks": "boolq"}, {"save_ppl": "t"}),
        ({"save_ppl": "t", "tasks": "boolq"}, {"save_ppl": "t", "tasks": "rte"}),
        ({"save_zeroshot": "t", "tasks": "boolq"}, {"save_zeroshot": "t", "tasks": "boolq", "eval_data": "demo"}),
    ],
)
def test_figures_that_are_nowhere_else_are_not_lost(
    run: Run,
    tiny: Path,
    texts: Texts,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: Any,
    first: dict[str, str],
    then: dict[str, str],
) -> None:
    """Each JSON holds the whole row: perplexities and accuracies."""
    accuracies = ZeroShotResult((TaskResult("boolq", "1", 0, 2, {"acc": 0.5}, {"acc": 0.1}, {"acc": "10"}),))
    monkeypatch.setattr(closing, "accuracy", lambda *_: accuracies)
    monkeypatch.setattr("autoprune.evaluation.tasks.check_tasks", lambda *_: None)
    monkeypatch.setattr(api, "check_room", lambda *_, **__: None)
    placed = [{k: tmp_path / v if v == "t" else v for k, v in options.items()} for options in (first, then)]
    run(tiny, **placed[0])
    before = contents(tmp_path / "t")
    answer = run_classic(capsys, flags(tiny, texts, **placed[1]))
    assert answer.status == 2
    assert "there is of another run: " in answer.err
    assert contents(tmp_path / "t") == before


def test_table_of_what_lay_there_before(
    capsys: pytest.CaptureFixture[str], run: Run, tiny: Path, texts: Texts, tmp_path: Path
) -> None:
    """The same directory holds another model now."""
    words = [
        "eval",
        str(tmp_path / "out"),
        "--eval_data",
        str(texts.heldout),
        "--seqlen",
        str(SEQLEN),
        "--save_ppl",
        str(tmp_path / "ppl"),
    ]
    run(tiny, save_model=tmp_path / "out")
    assert main(words) == 0
    run(tiny, save_model=tmp_path / "out", overwrite=True, seed=5)
    assert main(words) == 0, "the same method, target and words"
    run(tiny, save_model=tmp_path / "out", overwrite=True, sparsity_ratio=0.7)
    assert main(words) == 0
    assert sorted(path.stem for path in (tmp_path / "ppl").glob("*.txt")) == [
        "log_eval_wanda_50pct",
        "log_eval_wanda_70pct",
    ]


def test_runs_of_other_targets_and_settings_share_a_directory(run: Run, tiny: Path, tmp_path: Path) -> None:
    """As the two commands of the original README do; names and JSON say which is which."""
    more: list[dict[str, Any]] = [
        {},
        {"sparsity_ratio": None, "sparsity_type": "2:4"},
        {"prune_barber": True},
        {"prune_barber": True, "prune_granularity": "layer", "threshold": 0.1},
    ]
    for options in more:
        run(tiny, save_ppl=tmp_path / "ppl", **options)
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "ppl").glob("*.json")}
    assert {name: (row["method"], row["target"]) for name, row in found.items()} == {
        "log_wanda_50pct": ("wanda", "50 %"),
        "log_wanda_2of4": ("wanda", "2:4"),
        "log_wanda+barber-output1-0.01_50pct": ("wanda+barber (output1 0.01)", "50 %"),
        "log_wanda+barber-layer-0.1_50pct": ("wanda+barber (layer 0.1)", "50 %"),
    }


def test_a_stop_while_a_table_is_saved(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """At any of its files: what is there is whole, and --resume takes up the rest."""
    for stop in range(4):
        options = {"save_model": tmp_path / f"out{stop}", "save_ppl": tmp_path / f"ppl{stop}"}
        count = [0]

        def stopping(
            path: Path, target: Path, real: Any = Path.replace, stop: int = stop, count: list[int] = count
        ) -> Path:
            if "log_wanda_50pct." in path.name:
                count[0] += 1
                if count[0] == stop:
                    raise KeyboardInterrupt
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopping)
            assert run_classic(capsys, flags(tiny, texts, **options)).status == (130 if stop else 0)
        run(tiny, **options, resume=True)
        names = ["log_wanda_50pct.json", "log_wanda_50pct.txt"]
        assert [path.name for path in sorted((tmp_path / f"ppl{stop}").iterdir())] == names
        assert (tmp_path / f"ppl{stop}" / names[1]).read_bytes() == (tmp_path / "ppl0" / names[1]).read_bytes()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"settings": 1}'])
def test_file_that_is_no_table_is_not_replaced(refuse: Refuse, tiny: Path, tmp_path: Path, text: str | None) -> None:
    (tmp_path / "ppl").mkdir()
    (tmp_path / "ppl/log_wanda_50pct.txt").write_text("mine")
    if text is not None:
        (tmp_path / "ppl/log_wanda_50pct.json").write_text(text)
    refuse(tiny, f"--save_ppl {tmp_path / 'ppl'}: log_wanda_50pct there is no table that autoprune can read")


def test_perplexity_is_saved_before_the_tasks(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def failing(*_: object) -> None:
        raise ModelError("the harness gave up")

    options = {"save_ppl": tmp_path / "ppl"}
    monkeypatch.setattr(closing, "accuracy", failing)
    answer = run_classic(capsys, flags(tiny, texts, **options))
    assert (answer.status, answer.err.splitlines()[-1]) == (2, "error: the harness gave up")
    assert json.loads((tmp_path / "ppl/log_wanda_50pct.json").read_text())["perplexity"][0]["perplexity"] > 1
    assert "heldout.txt" in (tmp_path / "ppl/log_wanda_50pct.txt").read_text()


def test_perplexity_is_told_where_it_can_not_be_saved(
    tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name.startswith("log_") and ".txt" in path.name:
            raise OSError(28, "No space left on device")
        return written(path, *args, **kwargs)

    written = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    answer = run_classic(capsys, flags(tiny, texts, save_ppl=tmp_path / "ppl"))
    assert answer.status == 2
    assert "No space left on device" in answer.err
    assert "wanda" in answer.err.splitlines()[-1]
    assert "50.00 %" in answer.err.splitlines()[-1]


def test_quiet_with_nothing_saved(refuse: Refuse, tiny: Path) -> None:
    refuse(tiny, "--quiet shows nothing and nothing is saved", quiet=True, save_model=None, save_ppl=None)


@pytest.mark.parametrize(
    "option", ["model", "pruned_model", "calibration_data", "eval_data", "save_model", "save_ppl", "save_zeroshot"]
)
@pytest.mark.parametrize("word", ["a" * 300, "ab/" * 1500])
def test_words_that_are_too_long(refuse: Refuse, tiny: Path, option: str, word: str) -> None:
    message = refuse(
        tiny if option != "model" else word,
        f"--{option} ",
        "no name",
        prune_barber=True,
        **({option: word} if option != "model" else {}),
    )
    assert len(message) < 300


def test_context_shorter_than_the_probe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=128))
    assert main(["inspect", str(save_tiny(tmp_path / "model", model))]) == 0
    assert "exact: block by block" in capsys.readouterr().out


def test_two_runs_do_not_make_one_table(run: Run, refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    """The second is refused before any work while the first is at it; afterwards nothing but tables is left."""
    recipe = recipe_from_flat({"model": str(tiny), "sparsity_ratio": 0.5, "save_ppl": str(tmp_path / "ppl/deep")})
    stem = report_stem(recipe, ("wanda", "50 %"))
    with tables_claimed(recipe, stem):
        refuse(
            tiny, "another autoprune run is making log_wanda_50pct there; wait for it", save_ppl=tmp_path / "ppl/deep"
        )
        run(tiny, save_ppl=tmp_path / "ppl/deep", prune_method="magnitude")
    run(tiny, save_ppl=tmp_path / "ppl/deep")
    names = {path.name for path in (tmp_path / "ppl/deep").iterdir()}
    assert names == {f"log_{name}_50pct.{ending}" for name in ("wanda", "magnitude") for ending in ("txt", "json")}
