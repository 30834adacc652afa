"""--resume takes up nothing but the very same run, and measures nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.evaluation.perplexity import perplexity
from autoprune.run import api
from autoprune.run import measure as measuring
from autoprune.storage import manifest
from autoprune.storage import result as results
from autoprune.storage.journal import Journal
from end_to_end.conftest import Run
from end_to_end.test_resume import BARBER, finished, partial
from end_to_end.tiny import (
    Answer,
    Texts,
    change_weights,
    contents,
    flags,
    run_classic,
    save_tiny,
    tiny_model,
    write_words,
)

Change = Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]


def damp(tensors: dict[str, torch.Tensor]) -> None:
    """One weight of one block is another one."""
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1


def another_activation(model: Path) -> Path:
    """The same weights, with which something else is computed."""
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))
    return model


CHANGES: dict[str, tuple[Change, str]] = {
    "model": (lambda folder, _: {"model": change_weights(folder / "model", damp)}, "model.fingerprint was '"),
    "configuration": (lambda folder, _: {"model": another_activation(folder / "model")}, "model.config was '"),
    "recipe": (lambda *_: {"threshold": 0.2}, "recipe.steps.2.threshold was 0.1 and is 0.2"),
    "seed": (lambda *_: {"seed": 1}, "calibration.fingerprint was '"),
    "tokens": (
        lambda folder, _: {"calibration_data": write_words(folder / "text.txt", 600, 7)},
        "calibration.fingerprint was '",
    ),
    "versions": (
        lambda _, patch: patch.setattr(manifest, "version", lambda _: "0.0") or {},
        "versions.autoprune was '",
    ),
    "threads": (
        lambda _, patch: patch.setattr(torch, "get_num_threads", lambda: 3) or {},
        "here.threads was 1 and is 3",
    ),
    "batch": (lambda *_: {"batch_size": 1}, "here.batch was 2 and is 1"),
    "device": (lambda *_: {"device": "cpu:0"}, "here.device was 'cpu' and is 'cpu:0'"),
}


@pytest.fixture
def unfinished(
    capsys: pytest.CaptureFixture[str], texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Path]:
    """A run that was stopped behind its first block."""

    def stop() -> Path:
        save_tiny(tmp_path / "model")
        write_words(tmp_path / "text.txt", 600, 0)
        with monkeypatch.context() as patch:
            real, calls = results.save_file, [0]

            def stopping(*given: Any, **named: Any) -> None:
                calls[0] += 1
                if calls[0] == 3:
                    raise KeyboardInterrupt
                real(*given, **named)

            patch.setattr(results, "save_file", stopping)
            given = flags(
                tmp_path / "model",
                texts,
                **BARBER,
                calibration_data=tmp_path / "text.txt",
                save_model=tmp_path / "out",
            )
            assert run_classic(capsys, given).status == 130
        assert finished(tmp_path / "out") == 1
        return tmp_path / "out"

    return stop


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_not_taken_up(
    unfinished: Callable[[], Path],
    name: str,
    texts: Texts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = unfinished()
    usual: dict[str, Any] = {
        **BARBER,
        "model": tmp_path / "model",
        "calibration_data": tmp_path / "text.txt",
        "save_model": out,
    }
    before = contents(partial(out))
    change, expected = CHANGES[name]
    with monkeypatch.context() as patch:
        answer = run_classic(capsys, flags(**{**usual, **change(tmp_path, patch)}, resume=True))
    assert answer.status == 2
    assert f"--resume: the unfinished run beside {out} was another one: {expected}" in answer.err
    assert "repeat its command, or start again with --overwrite" in answer.err
    assert contents(partial(out)) == before  # the right command can still go on


def test_an_unfinished_run_is_neither_taken_up_nor_lost_unasked(
    unfinished: Callable[[], Path], texts: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = unfinished()
    given = flags(tmp_path / "model", None, **BARBER, calibration_data=tmp_path / "text.txt", save_model=out)
    before = contents(partial(out))
    answer = run_classic(capsys, given)
    assert answer.status == 2
    assert (
        f"an unfinished run lies beside it (in {partial(out)}); --resume goes on with it, --overwrite starts again"
        in answer.err
    )
    assert contents(partial(out)) == before
    answer = run_classic(capsys, [*given, "--overwrite"])
    assert answer.status == 0
    assert "resuming" not in answer.err


def test_an_unfinished_run_of_an_earlier_version_is_refused_by_name(
    unfinished: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = unfinished()
    state = partial(out) / "state.json"
    raw = json.loads(state.read_text())
    state.write_text(json.dumps({key: value for key, value in raw.items() if key != "format"}))
    given = flags(tmp_path / "model", None, **BARBER, calibration_data=tmp_path / "text.txt", save_model=out)
    answer = run_classic(capsys, [*given, "--resume"])
    assert answer.status == 2
    assert f"the unfinished run beside {out} is of another version of autoprune" in answer.err
    assert "format 1, and this version goes on with format 2" in answer.err
    assert run_classic(capsys, [*given, "--overwrite"]).status == 0


def test_a_configuration_that_is_only_laid_out_anew_is_the_same(
    unfinished: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = unfinished()
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=7))
    given = flags(tmp_path / "model", None, **BARBER, calibration_data=tmp_path / "text.txt", save_model=out)
    answer = run_classic(capsys, [*given, "--resume"])
    assert answer.status == 0, answer.err
    assert "resuming: 1 of" in answer.err


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {**BARBER, "compute_dtype": "bfloat16"},
        {**BARBER, "compute_dtype": "bfloat16", "dtype": "float16"},
        {**BARBER, "dtype": "bfloat16", "prune_method": "sparsegpt", "retain_reconstruction": True},
        {"prune_method": "wanda", "true_sequential": True},
        {**BARBER, "true_sequential": True},
    ],
    ids=["bfloat16", "bfloat16 of float16", "kept update", "in sequence", "in sequence, rebuilt"],
)
def test_every_way_of_computing_is_resumed_to_the_same_bits(
    run: Run,
    capsys: Any,
    texts: Texts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    blocks: int,
) -> None:
    """Finished blocks are run again as they ran before: in the same precision, with all samples at once or not."""
    model = save_tiny(tmp_path / "model", tiny_model(num_hidden_layers=4))
    with monkeypatch.context() as patch:
        real, done = Journal.finish, [0]

        def stopping(journal: Journal, result: Any) -> None:
            real(journal, result)
            done[0] += 1
            if done[0] == blocks:
                raise KeyboardInterrupt

        patch.setattr(Journal, "finish", stopping)
        assert run_classic(capsys, flags(model, texts, **options, save_model=tmp_path / "out")).status == 130
    assert finished(tmp_path / "out") == blocks
    assert f"resuming: {blocks} of 4 blocks" in run(model, **options, save_model=tmp_path / "out", resume=True).err
    run(model, **options, save_model=tmp_path / "reference")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.fixture
def two_texts(texts: Texts, tmp_path: Path) -> dict[str, str]:
    """Something to stop between."""
    return {"eval_data": f"{texts.heldout},{write_words(tmp_path / 'second.txt', 200, 3)}"}


@pytest.fixture
def measuring_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[str]]:
    """Notes which texts are measured; stops the run at one of them."""

    def watch(stop: str | None) -> list[str]:
        seen: list[str] = []

        def watched(store: Any, windows: Any, source: str, **named: Any) -> Any:
            seen.append(source)
            if source == stop:
                raise KeyboardInterrupt
            return perplexity(store, windows, source, **named)

        monkeypatch.setattr(measuring, "perplexity", watched)
        return seen

    return watch


def values(folder: Path) -> dict[str, float]:
    """Perplexities as they were saved."""
    raw = json.loads(next(folder.glob("log_*.json")).read_text(encoding="utf-8"))
    return {result["source"]: result["perplexity"] for result in raw["perplexity"]}


def test_evaluation_goes_on_where_it_stopped(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tiny: Path,
    texts: Texts,
    tmp_path: Path,
    two_texts: dict[str, str],
    measuring_of: Any,
) -> None:
    places = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
    measuring_of("second.txt")
    assert run_classic(capsys, flags(tiny, texts, **{**two_texts, **places})).status == 130
    checkpoint = contents(tmp_path / "out")
    assert [path.name for path in (tmp_path / "ppl").iterdir()] == ["log_wanda_50pct.unfinished.json"]
    seen = measuring_of(None)
    answer = run(tiny, **{**two_texts, **places}, resume=True)
    assert seen == ["second.txt"]
    assert "perplexity heldout.txt: measured before" in answer.err
    assert "pruning" not in answer.err.splitlines()
    assert contents(tmp_path / "out") == checkpoint
    assert sorted(path.suffix for path in (tmp_path / "ppl").iterdir()) == [".json", ".txt"]
    run(tiny, **{**two_texts, "save_model": tmp_path / "other", "save_ppl": tmp_path / "other-ppl"})
    assert values(tmp_path / "ppl") == values(tmp_path / "other-ppl")
    assert list(values(tmp_path / "ppl")) == ["heldout.txt", "second.txt"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({}, ["second.txt"]),
        ({"resume": None}, ["heldout.txt", "second.txt"]),
        ({"dtype": "bfloat16"}, ["heldout.txt", "second.txt"]),
        ({"seqlen": 12}, ["heldout.txt", "second.txt"]),
        ({"model": "changed"}, ["heldout.txt", "second.txt"]),
    ],
    ids=["same", "not resumed", "dtype", "windows", "weights"],
)
def test_only_what_is_the_very_same_is_not_measured_again(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    texts: Texts,
    tmp_path: Path,
    two_texts: dict[str, str],
    measuring_of: Any,
    changed: dict[str, Any],
    again: list[str],
) -> None:
    model = save_tiny(tmp_path / "model")
    options: dict[str, Any] = {**two_texts, "sparsity_ratio": 0, "save_ppl": tmp_path / "ppl", "resume": True}
    measuring_of("second.txt")
    assert run_classic(capsys, flags(model, texts, **options)).status == 130
    if changed.get("model"):
        change_weights(model, damp)
        changed = {}
    seen = measuring_of(None)
    run(model, **{**options, **changed})
    assert seen == again


def test_perplexities_survive_a_stop_in_zero_shot(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tiny: Path,
    texts: Texts,
    tmp_path: Path,
    measuring_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
    seen = measuring_of(None)
    with monkeypatch.context() as patch:
        patch.setattr(api, "accuracy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run_classic(capsys, flags(tiny, texts, **options)).status == 130
    assert seen == ["heldout.txt"]
    answer: Answer = run(tiny, **options, resume=True)
    assert seen == ["heldout.txt"]
    assert "is complete already; going on with what comes after" in answer.err
    assert list(values(tmp_path / "ppl")) == ["heldout.txt"]
