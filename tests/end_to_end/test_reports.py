"""Tables on disk: none replaces another run's, what is measured is saved at once, results are called what they are."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune import api, subject
from autoprune.cli.main import main
from autoprune.errors import ModelError
from autoprune.labels import DENSE, labels_of
from autoprune.recipe import recipe_from_flat
from autoprune.storage import writer
from autoprune.storage.checkpoint import Checkpoint
from end_to_end.conftest import Refuse, Run
from end_to_end.tiny import SEQLEN, Texts, contents, flags, run_classic, save_tiny


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sparsity_ratio": 0.6}, "pruning.sparsity_ratio was 0.5 and is 0.6"),
        ({"seed": 1}, "calibration.seed was 0 and is 1"),
        ({"dtype": "bfloat16"}, "model.dtype was 'auto' and is 'bfloat16'"),
    ],
)
def test_table_of_another_run_is_not_replaced(refuse: Refuse, run: Run, tiny: Path, tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    run(tiny, save_ppl=tmp_path / "ppl")
    refuse(tiny, f"--save_ppl {tmp_path / 'ppl'}: log_wanda_0.01.txt there is of another run: {says}", "--overwrite", **changed)
    run(tiny, save_ppl=tmp_path / "ppl")
    run(tiny, save_ppl=tmp_path / "ppl", prune_method="magnitude")
    run(tiny, save_ppl=tmp_path / "ppl", overwrite=True, **changed)
    assert sorted(path.name for path in (tmp_path / "ppl").glob("*.txt")) == ["log_magnitude_0.01.txt", "log_wanda_0.01.txt"]


def test_options_that_change_no_perplexity_make_no_other_table(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where caches lie, how the run behaves, and tasks that are measured besides."""
    monkeypatch.setattr(api, "accuracy", lambda *_: None)
    monkeypatch.setattr("autoprune.evaluation.tasks.check_tasks", lambda *_: None)
    monkeypatch.setattr(api, "check_room", lambda *_, **__: None)
    run(tiny, save_ppl=tmp_path / "ppl")
    for more in ({"tasks": "boolq"}, {"datasets_cache_dir": tmp_path / "cache"}, {"batch_size": 3}, {"activations": "disk"}):
        run(tiny, save_ppl=tmp_path / "ppl", **more)


def test_table_of_what_lay_there_before(capsys: pytest.CaptureFixture[str], run: Run, tiny: Path, texts: Texts, tmp_path: Path) -> None:
    """The same directory holds another model now."""
    words = ["eval", str(tmp_path / "out"), "--eval_data", str(texts.heldout), "--seqlen", str(SEQLEN), "--save_ppl", str(tmp_path / "ppl")]
    run(tiny, save_model=tmp_path / "out")
    assert main(words) == 0
    run(tiny, save_model=tmp_path / "out", overwrite=True, sparsity_ratio=0.7)
    assert main(words) == 2
    assert "log_eval_wanda.txt there is of another run: target was '50 %' and is '70 %'" in capsys.readouterr().err


def test_a_stop_while_a_table_is_saved(run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """At any of its files: what is there is whole, and --resume takes up the rest."""
    for stop in range(4):
        options = {"save_model": tmp_path / f"out{stop}", "save_ppl": tmp_path / f"ppl{stop}"}
        count = [0]

        def stopping(path: Path, target: Path, real: Any = Path.replace, stop: int = stop, count: list[int] = count) -> Path:
            if "log_wanda_0.01." in path.name:
                count[0] += 1
                if count[0] == stop:
                    raise KeyboardInterrupt
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopping)
            assert run_classic(capsys, flags(tiny, texts, **options)).status == (130 if stop else 0)
        run(tiny, **options, resume=True)
        names = ["log_wanda_0.01.json", "log_wanda_0.01.txt"]
        assert [path.name for path in sorted((tmp_path / f"ppl{stop}").iterdir())] == names
        assert (tmp_path / f"ppl{stop}" / names[1]).read_bytes() == (tmp_path / "ppl0" / names[1]).read_bytes()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"settings": 1}'])
def test_file_that_is_no_table_is_not_replaced(refuse: Refuse, tiny: Path, tmp_path: Path, text: str | None) -> None:
    (tmp_path / "ppl").mkdir()
    (tmp_path / "ppl/log_wanda_0.01.txt").write_text("mine")
    if text is not None:
        (tmp_path / "ppl/log_wanda_0.01.json").write_text(text)
    refuse(tiny, f"--save_ppl {tmp_path / 'ppl'}: log_wanda_0.01 there is no table that autoprune can read")


def test_perplexity_is_saved_before_the_tasks(run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def failing(*_: object) -> None:
        raise ModelError("the harness gave up")

    options = {"save_ppl": tmp_path / "ppl"}
    monkeypatch.setattr(api, "accuracy", failing)
    answer = run_classic(capsys, flags(tiny, texts, **options))
    assert (answer.status, answer.err.splitlines()[-1]) == (2, "error: the harness gave up")
    assert json.loads((tmp_path / "ppl/log_wanda_0.01.json").read_text())["perplexity"][0]["perplexity"] > 1
    assert "heldout.txt" in (tmp_path / "ppl/log_wanda_0.01.txt").read_text()


def test_perplexity_is_told_where_it_can_not_be_saved(tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
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


def evaluated(capsys: pytest.CaptureFixture[str], model: Path, texts: Texts, *more: str) -> str:
    assert main(["eval", str(model), "--eval_data", str(texts.heldout), "--seqlen", str(SEQLEN), *more]) == 0
    return capsys.readouterr().out


def test_a_pruned_model_is_not_called_dense(capsys: pytest.CaptureFixture[str], run: Run, tiny: Path, texts: Texts, tmp_path: Path) -> None:
    run(tiny, save_model=tmp_path / "out", prune_barber=True, save_ppl=tmp_path / "ppl")
    assert labels_of(tmp_path / "out") == ("wanda+barber", "50 %")
    assert labels_of(tiny) == DENSE
    out = evaluated(capsys, tmp_path / "out", texts, "--save_ppl", str(tmp_path / "ppl"))
    assert "wanda+barber" in out
    assert "dense" not in out
    first, again = (json.loads((tmp_path / f"ppl/log_{name}.json").read_text()) for name in ("wanda_0.01", "eval_wanda+barber"))
    assert first["perplexity"][0]["perplexity"] == again["perplexity"][0]["perplexity"]
    assert "dense" in evaluated(capsys, tiny, texts)


@pytest.mark.parametrize("manifest", ["", "{}", '{"recipe": 3}', '{"recipe": {"pruning": {"sparsity_ratio": 7}}}', '{"recipe": {"a": {"b": 1}}}'])
def test_manifest_that_names_no_recipe(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "autoprune.json").write_text(manifest)
    assert labels_of(tmp_path) == DENSE


@pytest.mark.parametrize("flag", ["--save_model", "--calibration_data", "--nsamples", "--prune_method", "--sparsity_ratio"])
def test_eval_takes_no_flag_that_means_nothing_there(capsys: pytest.CaptureFixture[str], tiny: Path, flag: str) -> None:
    assert main(["eval", str(tiny), flag, "1"]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--delete"], ["--save_ppl", "x"], ["--prune_method", "wanda"], ["--memory", "1GB"]])
def test_inspect_takes_no_flag_that_means_nothing_there(capsys: pytest.CaptureFixture[str], tiny: Path, words: list[str]) -> None:
    assert main(["inspect", str(tiny), *words]) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_quiet_with_nothing_saved(refuse: Refuse, tiny: Path) -> None:
    refuse(tiny, "--quiet shows nothing and nothing is saved", quiet=True, save_model=None, save_ppl=None)


@pytest.mark.parametrize("option", ["model", "pruned_model", "calibration_data", "eval_data", "save_model", "save_ppl", "save_zeroshot"])
@pytest.mark.parametrize("word", ["a" * 300, "ab/" * 1500])
def test_words_that_are_too_long(refuse: Refuse, tiny: Path, option: str, word: str) -> None:
    message = refuse(
        tiny if option != "model" else word, f"--{option} ", "no name", prune_barber=True, **({option: word} if option != "model" else {})
    )
    assert len(message) < 300


def test_context_shorter_than_the_probe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=128))
    assert main(["inspect", str(save_tiny(tmp_path / "model", model))]) == 0
    assert "exact: block by block" in capsys.readouterr().out


def test_what_an_earlier_run_meant_to_keep_is_kept(run: Run, tiny: Path, tmp_path: Path) -> None:
    """``--resume --delete`` on a finished result: removed only if the run that made it was to remove it."""
    run(tiny, save_model=tmp_path / "out")
    before = contents(tmp_path / "out")
    answer = run(tiny, save_model=tmp_path / "out", resume=True, delete=True)
    assert "was made by an earlier run that meant to keep it, so --delete leaves it there" in answer.err
    assert contents(tmp_path / "out") == before


def test_what_was_to_be_removed_is_removed_after_a_stop(run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    options = {"save_model": tmp_path / "out", "delete": True}
    with monkeypatch.context() as patch:
        patch.setattr(api, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, **options)).status == 130
    assert (tmp_path / "out/autoprune.json").is_file()
    run(tiny, **options, resume=True)
    assert not (tmp_path / "out").exists()


def test_what_was_to_be_removed_may_stay_after_all(run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Then it is as if it had been made to stay."""
    run(tiny, save_model=tmp_path / "reference")
    with monkeypatch.context() as patch:
        patch.setattr(api, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, save_model=tmp_path / "out", delete=True)).status == 130
    run(tiny, save_model=tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    run(tiny, save_model=tmp_path / "out", resume=True, delete=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.mark.parametrize("inside", [False, True], ids=["replaced", "mounted"])
def test_chat_templates_come_along_and_go_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """transformers keeps further chat templates in a folder of their own."""
    from transformers import AutoTokenizer

    out, model = tmp_path / "out", save_tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    tokenizer.save_pretrained(model)
    template = "additional_chat_templates/tools.jinja"
    assert (model / template).is_file()
    monkeypatch.setattr("os.path.ismount", lambda path: inside and Path(path) == out)
    for i in range(2):
        run(model, save_model=out, overwrite=i > 0)
        assert tokenizer.chat_template.items() <= AutoTokenizer.from_pretrained(out).chat_template.items()
        assert (out / template).read_bytes() == (model / template).read_bytes()
        assert template in json.loads((out / "autoprune.json").read_text())["written"]
        (out / "additional_chat_templates/mine.jinja").write_text("mine")
    run(model, save_model=out, overwrite=True)
    assert (out / "additional_chat_templates/mine.jinja").read_text() == "mine"
    (out / "additional_chat_templates/mine.jinja").unlink()
    run(model, save_model=out, overwrite=True, delete=True)
    assert not out.exists() or list(out.iterdir()) == []


def test_large_files_beside_the_weights_are_left_behind(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model")
    (model / "notes.csv").write_text("x" * 100)
    (model / "train.csv").write_text("x" * 50_000)
    monkeypatch.setattr(writer, "LARGEST_COMPANION", 20_000)
    answer = run(model, save_model=tmp_path / "out")
    assert "not copied, for no file of a model but its weights is as large: train.csv" in answer.err
    assert (tmp_path / "out/notes.csv").is_file()
    assert not (tmp_path / "out/train.csv").exists()


def test_companions_are_counted_among_what_the_disk_must_hold(refuse: Refuse, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model")
    room = sum(path.stat().st_size for path in model.glob("*.safetensors")) + 20_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": room}))
    (model / "notes.csv").write_text("x" * 50_000)
    refuse(model, "MiB are free on that disk")


def test_no_room_for_hidden_states_on_disk(run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    answer = run_classic(capsys, flags(tiny, texts, activations="disk", save_model=tmp_path / "out"))
    assert answer.status == 2
    assert "error: --activations disk: 0 MiB of hidden states can't be put into" in answer.err
    assert "No space left on device" in answer.err


def test_evaluation_keeps_hidden_states_on_the_disk_of_the_result(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []
    make = tempfile.mkstemp
    monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.0)
    monkeypatch.setattr("tempfile.mkstemp", lambda suffix, dir: (places.append(dir), make(suffix=suffix, dir=dir))[1])
    run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "ppl", activations="disk")
    assert set(places) == {tmp_path / ".out.autoprune-partial", tmp_path}


def test_a_wider_precision_needs_more_to_be_held(tmp_path: Path) -> None:
    from end_to_end.tiny import tiny_model

    model = save_tiny(tmp_path / "model", tiny_model(dtype=torch.bfloat16))
    checkpoint = Checkpoint.open(model)
    for dtype, wider in (("auto", 1), ("bfloat16", 1), ("float16", 1), ("float32", 2)):
        recipe = recipe_from_flat({"model": str(model), "sparsity_ratio": 0.5, "dtype": dtype})
        assert subject.held_bytes(checkpoint, recipe) == wider * checkpoint.bytes


def test_large_allocations_are_given_back_before_the_model_is_built(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight is allocated for a moment while the model is built: a heap that keeps them would grow with the model's depth."""
    steps: list[str] = []
    build = subject.build_skeleton
    monkeypatch.setattr(subject, "return_large_blocks", lambda: steps.append("limit"))
    monkeypatch.setattr(subject, "build_skeleton", lambda *a, **k: (steps.append("build"), build(*a, **k))[1])
    recipe = recipe_from_flat({"model": str(tiny), "sparsity_ratio": 0.5})
    for resident, expected in ((False, ["limit", "build"]), (None, ["limit", "build"]), (True, ["build"])):
        steps.clear()
        subject.open_model(recipe, resident=resident)
        assert steps == expected
