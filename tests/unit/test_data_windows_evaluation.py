"""A text -> the windows on which perplexity is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import (
    byte_tokenizer,
    evaluate,
    refused,
    word_ids,
    word_tokenizer,
    words,
    write_texts,
    write_txt,
)


class TestEvaluation:
    @pytest.mark.parametrize("count", [16, 31, 32, 100])
    def test_windows_tile_the_text(self, tmp_path: Path, count: int) -> None:
        text = words(count)
        got = evaluate(write_txt(tmp_path, text))
        assert got.ids.dtype == torch.int64
        assert got.ids.flatten().tolist() == word_ids(text)[: count // 16 * 16]
        assert (got.provenance["tokens"], got.provenance["windows"], got.provenance["seed"]) == (
            count,
            count // 16,
            None,
        )
        assert (got.provenance["purpose"], got.provenance["fingerprint"]) == ("evaluation", got.fingerprint)

    def test_documents_are_joined_before_tokenising(self, tmp_path: Path) -> None:
        path = write_texts(tmp_path / "a.jsonl", ["ab", "", "c" * 20])
        got = evaluate(path, seqlen=2, load_tokenizer=byte_tokenizer, vocab_size=256)
        assert got.ids.flatten().tolist() == byte_tokenizer()("ab\n\n\n\n" + "c" * 20)["input_ids"]
        assert got.provenance["documents"] == 3

    def test_max_windows(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(100))
        assert torch.equal(evaluate(path, max_windows=2).ids, evaluate(path).ids[:2])
        assert evaluate(path, max_windows=50).ids.shape == (6, 16)

    def test_too_short(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(15))
        refused(
            lambda: evaluate(path),
            "--eval_data",
            "a.txt",
            "15 tokens",
            "one window needs 16",
            "--seqlen to 15 or less",
            "longer text",
        )
        refused(lambda: evaluate(path, flag="--data"), "--data ", "a.txt")

    def test_tokenizer_of_another_model(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(40))
        refused(
            lambda: evaluate(path, vocab_size=30),
            "--eval_data",
            "token id 30 at window 1, position 12",
            "vocabulary of 30 (ids 0 to 29)",
        )

    @pytest.mark.parametrize(
        "text", ["plain text of letters, thirty-two", "één twee drie — 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ünd Ümläute", "日本語のテキスト" * 4]
    )
    def test_bytes_under_the_windows(self, tmp_path: Path, text: str) -> None:
        path = write_txt(tmp_path, text)
        raw = text.encode()
        for seqlen in (2, 7, 16):
            got = evaluate(path, seqlen=seqlen, load_tokenizer=byte_tokenizer, vocab_size=256)
            covered = len(raw) // seqlen * seqlen
            # A character cut in the middle counts as a whole.
            assert covered <= got.provenance["utf8_bytes"] < covered + 4

    def test_bytes_with_start_token_and_without_a_fast_tokenizer(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(20))
        got = evaluate(path, seqlen=4, max_windows=1, load_tokenizer=lambda: word_tokenizer(bos=True))
        assert got.provenance["utf8_bytes"] == len("w0 w1 w2")
        assert got.provenance["bos_token_added"] is True

        def slow(text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": word_ids(text)}

        slow.bos_token_id = None  # type: ignore[attr-defined]
        assert evaluate(path, load_tokenizer=lambda: slow).provenance["utf8_bytes"] is None
