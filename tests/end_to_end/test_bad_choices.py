"""Flags and texts that can't be used: each message quotes the user's word and says what to do, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autoprune.cli.main import classic, main
from end_to_end.conftest import Refuse, refused
from end_to_end.tiny import CONTEXT, SEQLEN, VOCABULARY, Answer, run_classic, save_tiny, tiny_model, write_words


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        ("1", "--sparsity_ratio 1 is outside [0, 1)"),
        ("1.5", "--sparsity_ratio 1.5 is outside [0, 1)"),
        ("-0.1", "--sparsity_ratio -0.1 is outside [0, 1)"),
        ("nan", "--sparsity_ratio nan is not a number"),
        ("inf", "--sparsity_ratio: invalid number value: 'inf'"),
        ("half", "--sparsity_ratio: invalid number value: 'half'"),
        ("50%", "--sparsity_ratio: invalid number value: '50%'"),
        (None, "--sparsity_ratio is needed"),
    ],
)
def test_ratio(refuse: Refuse, tiny: Path, ratio: str | None, says: str) -> None:
    refuse(tiny, says, sparsity_ratio=ratio)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("2-4", "'2-4' is neither `unstructured` nor N:M; write for example 2:4"),
        ("2:", "'2:' is neither"),
        ("2:4:8", "'2:4:8' is neither"),
        ("5:4", "5:4: N must not be greater than M"),
        ("0:4", "0:4 would zero every weight; choose 0 < N < M"),
        ("4:4", "4:4 would prune nothing; choose 0 < N < M"),
        ("0:0", "0:0 would zero every weight"),
    ],
)
def test_n_m(refuse: Refuse, tiny: Path, kind: str, says: str) -> None:
    refuse(tiny, "--sparsity_type", says, **{"sparsity_type": kind, "sparsity_ratio": None})


def test_ratio_that_contradicts_n_m(refuse: Refuse, tiny: Path) -> None:
    refuse(
        tiny,
        "--sparsity_type 2:4 makes 0.5",
        "--sparsity_ratio says 0.6",
        "make them agree",
        sparsity_type="2:4",
        sparsity_ratio=0.6,
    )
    refuse(
        tiny, "--sparsity_type 1:4 makes 0.75", "--sparsity_ratio says 0.25", sparsity_type="1:4", sparsity_ratio=0.25
    )


def test_width_that_m_does_not_divide(refuse: Refuse, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "odd", tiny_model(intermediate_size=36))
    refuse(
        model,
        "model.layers.0.mlp.down_proj has 36 input features",
        "not divisible by 8",
        "--ignore '*.down_proj'",
        sparsity_type="4:8",
    )


def test_pattern_that_matches_nothing(refuse: Refuse, tiny: Path) -> None:
    refuse(tiny, "--ignore '*.query' matches no layer", "model.layers.0.self_attn.q_proj", ignore="*.query")


def test_pattern_that_leaves_nothing(refuse: Refuse, tiny: Path) -> None:
    refuse(tiny, "--ignore *_proj leaves no layer to prune", ignore="*_proj")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"prune_method": "wandaa"},
            "--prune_method 'wandaa' is unknown (did you mean wanda?); choose from magnitude",
        ),
        ({"prune_granularity": "row"}, "--prune_granularity 'row' is unknown"),
        ({"threshold": 1.5}, "--threshold 1.5 is not a fraction"),
        ({"threshold": "nan"}, "--threshold nan is not a fraction"),
        ({"damping": 0}, "--damping 0.0 must be a positive number"),
        ({"column_block": 0}, "--column_block 0 is too small"),
        ({"nsamples": 0}, "--nsamples 0 is too small"),
        ({"nsamples": "many"}, "--nsamples: invalid whole number value: 'many'"),
        ({"nsamples": 1.5}, "--nsamples: invalid whole number value: '1.5'"),
        ({"seqlen": 1}, "--seqlen 1 is too small"),
        ({"batch_size": -1}, "--batch_size -1 is too small"),
        ({"dtype": "int8"}, "--dtype 'int8' is unknown"),
        ({"device": "gpu"}, "--device 'gpu' can't be used here"),
        ({"device": "cuda:99"}, "--device 'cuda:99' can't be used here"),
        ({"device": "meta"}, "--device 'meta' can't be used here"),
        ({"no_such_flag": 1}, "unrecognized arguments: --no_such_flag"),
        ({"sparsity-ratio": 0.5}, "unrecognized arguments: --sparsity-ratio"),
        (
            {"prune_barber": True, "sparsity_type": "2:4", "prune_granularity": "block"},
            "--prune_granularity block can't keep 2:4",
        ),
        (
            {"pruned_model": "somewhere"},
            "--pruned_model only has a meaning together with a step that goes on with it, such as --prune_barber",
        ),
        ({"delete": True, "save_model": None}, "--delete removes what --save_model wrote"),
        ({"save_model": ""}, "--save_model is empty"),
        ({"eval_data": ""}, "--eval_data is empty"),
        ({"eval_data": "wikitext2,,c4"}, "--eval_data is empty or has an empty part"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_choice(refuse: Refuse, tiny: Path, options: dict[str, object], says: str) -> None:
    refuse(tiny, says, **options)


def test_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--sparsity_ratio", "0.5"], ["--model"]):
        refused(run_classic(capsys, words), "--model", "--help")
    refused(run_classic(capsys, ["--model", "", "--sparsity_ratio", "0.5"]), "--model is missing")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["prunne", "demo"],
        ["eval"],
        ["prune", "--sparsity_ratio", "0.5"],
        ["eval", "demo", "--sparsity_ratio", "0.5"],
    ],
)
def test_console_script(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    refused(Answer(main(words), *capsys.readouterr()), "--help")


def test_flags_are_not_guessed_from_their_beginnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert classic(["--model", "demo", "--sparsity_rat", "0.5"]) == 2
    assert "unrecognized arguments: --sparsity_rat" in capsys.readouterr().err


def test_missing_text(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    for flag in ("calibration_data", "eval_data"):
        refuse(tiny, f"--{flag} {tmp_path / 'gone.txt'}", **{flag: tmp_path / "gone.txt"})


def test_text_that_is_too_short(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    text = write_words(tmp_path / "short.txt", SEQLEN - 1, 0)
    refuse(
        tiny,
        f"--calibration_data {text}",
        f"has {SEQLEN - 1} tokens",
        "--seqlen",
        "a longer text",
        calibration_data=text,
    )
    refuse(tiny, f"--eval_data {text}", f"has {SEQLEN - 1} tokens", "--seqlen", "a longer text", eval_data=text)


def test_text_that_is_empty(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    for content in ("", " \n\n "):
        (tmp_path / "empty.txt").write_text(content)
        refuse(
            tiny, f"--calibration_data {tmp_path / 'empty.txt'}", "holds text", calibration_data=tmp_path / "empty.txt"
        )


def test_text_that_is_not_utf8(refuse: Refuse, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("w1 w2 é".encode("latin-1") * 99)
    refuse(
        tiny,
        f"--calibration_data {tmp_path / 'latin.txt'}",
        "not UTF-8",
        "iconv",
        calibration_data=tmp_path / "latin.txt",
    )


def test_seqlen_beyond_the_context(refuse: Refuse, tiny: Path) -> None:
    refuse(
        tiny,
        f"--seqlen {CONTEXT + 1} is more than the model's context of {CONTEXT} tokens",
        f"give {CONTEXT} or less",
        seqlen=CONTEXT + 1,
    )


@pytest.mark.parametrize("bad", [VOCABULARY, -1])
def test_token_outside_the_vocabulary(refuse: Refuse, tiny: Path, tmp_path: Path, bad: int) -> None:
    ids = torch.ones(8, SEQLEN, dtype=torch.int64)
    ids[2, 3] = bad
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    for flag in ("calibration_data", "eval_data"):
        refuse(
            tiny,
            f"--{flag}",
            f"token id {bad} at window 2, position 3",
            f"vocabulary of {VOCABULARY}",
            **{flag: tmp_path / "ids.safetensors"},
        )


def test_texts_without_network(refuse: Refuse, tiny: Path) -> None:
    for flag in ("calibration_data", "eval_data"):
        for word in ("c4", "wikitext2", "ptb"):
            refuse(
                tiny,
                f"--{flag} {word}",
                "could not be fetched",
                f"use a local file instead (--{flag} FILE.txt)",
                **{flag: word},
            )
