"""Token files: rows of ids that are windows already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data_fixtures import calibrate, evaluate, no_tokenizer, refused
from safetensors.torch import save_file

from autoprune.data.windows import Windows


def write_tokens(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


class TestTokenFiles:
    def test_calibration_takes_the_first_rows(self, tmp_path: Path) -> None:
        ids = torch.arange(96).view(6, 16)
        got = calibrate(write_tokens(tmp_path, input_ids=ids, other=torch.ones(1)), load_tokenizer=no_tokenizer)
        assert torch.equal(got.ids, ids[:4])
        facts = dict(got.provenance)
        assert len(facts.pop("sha256")) == 64
        assert facts.pop("fingerprint") == got.fingerprint
        assert facts == {
            "source": "a.safetensors",
            "kind": "tokens",
            "purpose": "calibration",
            "file": "a.safetensors",
            "documents": None,
            "tokens": 96,
            "windows": 4,
            "distinct_windows": 4,
            "seqlen": 16,
            "seed": None,
            "bos_token_added": None,
            "utf8_bytes": None,
        }

    def test_evaluation_takes_all_rows(self, tmp_path: Path) -> None:
        ids = torch.arange(96).view(6, 16)
        path = write_tokens(tmp_path, input_ids=ids)
        assert torch.equal(evaluate(path, load_tokenizer=no_tokenizer).ids, ids)
        assert torch.equal(evaluate(path, load_tokenizer=no_tokenizer, max_windows=2).ids, ids[:2])
        assert evaluate(path, load_tokenizer=no_tokenizer).provenance["purpose"] == "evaluation"

    def test_too_few_rows(self, tmp_path: Path) -> None:
        path = write_tokens(tmp_path, input_ids=torch.zeros(3, 16, dtype=torch.int64))
        refused(
            lambda: calibrate(path),
            "--calibration_data",
            "a.safetensors",
            "holds 3 rows",
            "4 are wanted",
            "--nsamples 3",
        )

    @pytest.mark.parametrize("run", [calibrate, evaluate])
    @pytest.mark.parametrize("length", [15, 17])
    def test_rows_of_another_length(self, tmp_path: Path, run: Callable[..., Windows], length: int) -> None:
        path = write_tokens(tmp_path, input_ids=torch.zeros(4, length, dtype=torch.int64))
        refused(
            lambda: run(path), "a.safetensors", f"rows are {length} tokens long", "seqlen is 16", f"--seqlen {length}"
        )

    @pytest.mark.parametrize("bad", [-1, 502, 2**40])
    @pytest.mark.parametrize("run", [calibrate, evaluate])
    def test_ids_outside_the_vocabulary(self, tmp_path: Path, run: Callable[..., Windows], bad: int) -> None:
        ids = torch.zeros(4, 16, dtype=torch.int64)
        ids[2, 5] = bad
        path = write_tokens(tmp_path, input_ids=ids)
        refused(
            lambda: run(path),
            "a.safetensors",
            f"token id {bad} at window 2, position 5",
            "vocabulary of 502",
            "this model's tokenizer",
        )

    def test_other_tensors(self, tmp_path: Path) -> None:
        refused(
            lambda: calibrate(write_tokens(tmp_path, ids=torch.zeros(1), x=torch.zeros(1))),
            "no tensor `input_ids`, only ids, x",
            "save int64",
        )
        refused(
            lambda: calibrate(write_tokens(tmp_path, input_ids=torch.zeros(4, 16, dtype=torch.int32))),
            "is int32, not int64",
            ".to(torch.int64)",
        )
        refused(lambda: calibrate(write_tokens(tmp_path, input_ids=torch.zeros(4, 16))), "is float32, not int64")
        for shape in ([64], [1, 4, 16], [0, 16]):
            path = write_tokens(tmp_path, input_ids=torch.zeros(shape, dtype=torch.int64))
            refused(lambda path=path: calibrate(path), f"has shape {shape}", "[samples, seqlen]")

    @pytest.mark.parametrize("raw", [b"", b"nonsense that is long enough", b"\xff" * 64])
    def test_damaged(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / "a.safetensors").write_bytes(raw)
        refused(
            lambda: calibrate(tmp_path / "a.safetensors"), "a.safetensors", "not a readable safetensors file", "again"
        )

    def test_cut_short(self, tmp_path: Path) -> None:
        path = write_tokens(tmp_path, input_ids=torch.zeros(4, 16, dtype=torch.int64))
        path.write_bytes(path.read_bytes()[:-8])
        refused(lambda: calibrate(path), "not a readable safetensors file")
