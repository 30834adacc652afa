"""What a result brings along, what becomes of it in the end, and where large things lie meanwhile."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.machine import allocator
from autoprune.recipe.recipe import recipe_from_flat
from autoprune.run import closing
from autoprune.run import open as subject
from autoprune.storage import shards
from autoprune.storage.checkpoint import Checkpoint
from end_to_end.conftest import Refuse, Run
from end_to_end.tiny import Texts, contents, flags, run_classic, save_tiny


def test_what_an_earlier_run_meant_to_keep_is_kept(run: Run, tiny: Path, tmp_path: Path) -> None:
    """``--resume --delete`` on a finished result: removed only if the run that made it was to remove it."""
    run(tiny, save_model=tmp_path / "out")
    before = contents(tmp_path / "out")
    answer = run(tiny, save_model=tmp_path / "out", resume=True, delete=True)
    assert "was made by an earlier run that meant to keep it, so --delete leaves it there" in answer.err
    assert contents(tmp_path / "out") == before


def test_what_was_to_be_removed_is_removed_after_a_stop(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    options = {"save_model": tmp_path / "out", "delete": True}
    with monkeypatch.context() as patch:
        patch.setattr(closing, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, **options)).status == 130
    assert (tmp_path / "out/autoprune.json").is_file()
    run(tiny, **options, resume=True)
    assert not (tmp_path / "out").exists()


def test_what_was_to_be_removed_may_stay_after_all(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Then it is as if it had been made to stay."""
    run(tiny, save_model=tmp_path / "reference")
    with monkeypatch.context() as patch:
        patch.setattr(closing, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, save_model=tmp_path / "out", delete=True)).status == 130
    run(tiny, save_model=tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    run(tiny, save_model=tmp_path / "out", resume=True, delete=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.mark.parametrize("inside", [False, True], ids=["replaced", "mounted"])
def test_chat_templates_come_along_and_go_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
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


def test_large_files_beside_the_weights_are_left_behind(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "model")
    (model / "notes.csv").write_text("x" * 100)
    (model / "train.csv").write_text("x" * 50_000)
    monkeypatch.setattr(shards, "LARGEST_COMPANION", 20_000)
    answer = run(model, save_model=tmp_path / "out")
    assert "not copied, for no file of a model but its weights is as large: train.csv" in answer.err
    assert (tmp_path / "out/notes.csv").is_file()
    assert not (tmp_path / "out/train.csv").exists()


def test_companions_are_counted_among_what_the_disk_must_hold(
    refuse: Refuse, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "model")
    room = sum(path.stat().st_size for path in model.glob("*.safetensors")) + 20_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": room}))
    (model / "notes.csv").write_text("x" * 50_000)
    refuse(model, "MiB are free on that disk")


def test_no_room_for_hidden_states_on_disk(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    answer = run_classic(capsys, flags(tiny, texts, activations="disk", save_model=tmp_path / "out"))
    assert answer.status == 2
    assert "error: --activations disk: 0 MiB of hidden states can't be put into" in answer.err
    assert "No space left on device" in answer.err


def test_evaluation_keeps_hidden_states_on_the_disk_of_the_result(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []
    make = tempfile.mkstemp
    monkeypatch.setattr(subject, "RESIDENT_SHARE", 0.0)
    monkeypatch.setattr("tempfile.mkstemp", lambda suffix, dir: (places.append(dir), make(suffix=suffix, dir=dir))[1])
    run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "ppl", activations="disk")
    assert set(places) == {tmp_path / ".out.autoprune-partial", tmp_path / "out"}
    assert not list((tmp_path / "out").glob("*.hidden"))


def test_a_wider_precision_needs_more_to_be_held(tmp_path: Path) -> None:
    from end_to_end.tiny import tiny_model

    model = save_tiny(tmp_path / "model", tiny_model(dtype=torch.bfloat16))
    checkpoint = Checkpoint.open(model)
    for dtype, wider in (("auto", 1), ("bfloat16", 1), ("float16", 1), ("float32", 2)):
        recipe = recipe_from_flat({"model": str(model), "sparsity_ratio": 0.5, "dtype": dtype})
        assert subject.held_bytes(checkpoint, recipe) == wider * checkpoint.bytes


def test_large_allocations_are_given_back_before_the_model_is_built(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each weight is allocated for a moment while the model is built: a heap that keeps them would grow with the
    model's depth.
    """
    steps: list[str] = []
    build = subject.build_skeleton
    monkeypatch.setattr(subject, "return_large_blocks", lambda: steps.append("limit"))
    monkeypatch.setattr(subject, "build_skeleton", lambda *a, **k: (steps.append("build"), build(*a, **k))[1])
    recipe = recipe_from_flat({"model": str(tiny), "sparsity_ratio": 0.5})
    for resident, expected in ((False, ["limit", "build"]), (None, ["limit", "build"]), (True, ["build"])):
        steps.clear()
        subject.open_model(recipe, resident=resident)
        assert steps == expected


def test_glibcs_limits_are_set_back_behind_a_run(run: Run, tiny: Path, tmp_path: Path) -> None:
    asked: list[bool] = []

    def limited() -> None:
        allocator.return_large_blocks()
        asked.append(allocator._Limits.changed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "return_large_blocks", limited)
        run(tiny, save_model=tmp_path / "out")
    assert asked and all(asked) == (allocator._glibc() is not None)
    assert not allocator._Limits.changed and not allocator._Limits.runs


def test_a_manifest_that_can_not_be_written_again(
    run: Run, tiny: Path, texts: Texts, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(closing, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, save_model=tmp_path / "out", delete=True)).status == 130
    before = contents(tmp_path / "out")

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autoprune.storage.files.sync", full)
        answer = run_classic(capsys, flags(tiny, texts, save_model=tmp_path / "out", resume=True))
    assert answer.status == 2
    assert "still says that the result is to be removed" in answer.err
    assert contents(tmp_path / "out") == before
