"""Documents -> windows, against a slow copy of the papers' sampling that shares no code with the program."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import (
    calibrate,
    evaluate,
    published_documents,
    published_one_text,
    refused,
    word_ids,
    word_tokenizer,
    words,
    write_texts,
    write_txt,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from autoprune.data import windows
from autoprune.data.windows import Windows, calibration_windows, evaluation_windows


class TestCalibrationFromOneText:
    @pytest.mark.parametrize("seed", [0, 1, 12345])
    def test_as_published(self, tmp_path: Path, seed: int) -> None:
        text = words(300)
        got = calibrate(write_txt(tmp_path, text), nsamples=9, seed=seed)
        assert got.ids.dtype == torch.int64
        assert got.ids.tolist() == published_one_text(word_ids(text), 9, 16, seed)

    def test_global_random_state_is_left_alone(self, tmp_path: Path) -> None:
        random.seed(5)
        state = random.getstate()
        calibrate(write_txt(tmp_path, words(50)))
        assert random.getstate() == state

    def test_provenance(self, tmp_path: Path) -> None:
        got = calibrate(write_txt(tmp_path, words(17)), nsamples=3, bos=True)
        facts = dict(got.provenance)
        assert len(facts.pop("sha256")) == 64
        assert facts.pop("fingerprint") == got.fingerprint
        assert facts == {
            "source": "a.txt",
            "kind": "txt",
            "purpose": "calibration",
            "file": "a.txt",
            "documents": 1,
            "tokens": 18,
            "windows": 3,
            "distinct_windows": len({tuple(row) for row in got.ids.tolist()}),
            "seqlen": 16,
            "seed": 0,
            "bos_token_added": True,
            "utf8_bytes": None,
        }
        assert str(tmp_path) not in json.dumps(got.provenance)

    def test_start_token_is_added_once(self, tmp_path: Path) -> None:
        text = words(40)
        got = calibrate(write_txt(tmp_path, text), nsamples=5, bos=True)
        assert got.ids.tolist() == published_one_text([0, *word_ids(text)], 5, 16, 0)
        assert calibrate(tmp_path / "a.txt").provenance["bos_token_added"] is False

    def test_too_short(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(16))
        refused(
            lambda: calibrate(path),
            "--calibration_data",
            "a.txt",
            "16 tokens",
            "windows of 16 need at least 17",
            "--seqlen",
            "longer text",
        )
        # One token more leaves one start only: the last window of a text is never drawn, as published.
        assert calibrate(write_txt(tmp_path, words(17)), nsamples=20).ids.tolist() == [word_ids(words(16))] * 20

    def test_tokenizer_of_another_model(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(100))
        refused(
            lambda: calibrate(path, vocab_size=50),
            "a.txt",
            "token id 51 at window 0, position 0",
            "vocabulary of 50",
            "belongs to this model",
        )

    def test_long_texts_are_tokenised_in_silence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spoken: list[str] = []
        monkeypatch.setattr(
            logging.getLogger("transformers"), "handle", lambda record: spoken.append(record.getMessage())
        )
        monkeypatch.setattr(
            logging.getLogger("transformers.tokenization_utils_base"),
            "handle",
            lambda record: spoken.append(record.getMessage()),
        )
        calibrate(write_txt(tmp_path, words(2000)))
        evaluate(tmp_path / "a.txt")
        calibrate(write_texts(tmp_path / "a.jsonl", [words(200)] * 3))
        refused(lambda: calibrate(tmp_path / "a.jsonl", seqlen=300))
        assert not spoken
        word_tokenizer()(words(2000))
        assert "longer than the specified maximum" in spoken[0]  # that is what would have been heard


class TestCalibrationFromDocuments:
    @given(
        lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
        seed=st.integers(0, 100),
        seqlen=st.integers(1, 39),
    )
    def test_as_published(
        self, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int, seqlen: int
    ) -> None:
        texts = [words(length, first=37 * i) for i, length in enumerate([*lengths, 40])]
        path = write_texts(tmp_path_factory.mktemp("documents") / "a.jsonl", texts)
        got = calibrate(path, nsamples=6, seqlen=seqlen, seed=seed)
        assert got.ids.tolist() == published_documents([word_ids(text) for text in texts], 6, seqlen, seed)

    def test_start_token_counts_and_is_reported(self, tmp_path: Path) -> None:
        texts = [words(15), words(16, 20), words(30, 40)]
        got = calibrate(write_texts(tmp_path / "a.jsonl", texts), nsamples=8, bos=True)
        assert got.ids.tolist() == published_documents([[0, *word_ids(text)] for text in texts], 8, 16, 0)
        assert got.provenance["bos_token_added"] is True
        assert (got.provenance["documents"], got.provenance["tokens"], got.provenance["seed"]) == (3, None, 0)

    def test_parquet_and_jsonl_agree(self, tmp_path: Path) -> None:
        texts = [words(20 + i, i) for i in range(9)]
        write_texts(tmp_path / "a.parquet", texts)
        one, other = calibrate(write_texts(tmp_path / "a.jsonl", texts)), calibrate(tmp_path / "a.parquet")
        assert torch.equal(one.ids, other.ids)
        assert one.fingerprint == other.fingerprint

    def test_no_document_is_long_enough(self, tmp_path: Path) -> None:
        path = write_texts(tmp_path / "a.jsonl", [words(i) for i in range(1, 17)])
        refused(
            lambda: calibrate(path),
            "--calibration_data",
            "a.jsonl",
            "the longest of its 16 documents has 16 tokens",
            "window of 16 needs one of at least 17",
            "--seqlen to less than 16",
            "--calibration_data FILE.txt",
        )

    def test_search_for_a_long_document_changes_no_sample(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = [words(3)] * 60 + [words(30)] + [words(4)] * 60
        path = write_texts(tmp_path / "a.jsonl", texts)
        expected = published_documents([word_ids(text) for text in texts], 4, 16, 3)
        assert calibrate(path, seed=3).ids.tolist() == expected
        monkeypatch.setattr(windows, "FRUITLESS_DRAWS", 2)
        monkeypatch.setattr(windows, "_SWEEP", 7)
        assert calibrate(path, seed=3).ids.tolist() == expected
        path = write_texts(tmp_path / "a.jsonl", [words(3)] * 100)
        refused(lambda: calibrate(path), "the longest of its 100 documents has 3 tokens")

    def test_only_drawn_documents_are_tokenised(self, tmp_path: Path) -> None:
        tokenizer = word_tokenizer()
        seen: list[str] = []

        def counting(text: str, **options: Any) -> Any:
            seen.append(text)
            return tokenizer(text, **options)

        counting.bos_token_id = None  # type: ignore[attr-defined]
        texts = [words(20, i) for i in range(400)]
        calibrate(write_texts(tmp_path / "a.jsonl", texts), nsamples=10, load_tokenizer=lambda: counting)
        assert 0 < len(seen) <= 10
        assert len(seen) == len(set(seen))


class TestDeterminism:
    def test_seed(self, tmp_path: Path) -> None:
        path = write_txt(tmp_path, words(400))
        assert calibrate(path, seed=7).fingerprint == calibrate(path, seed=7).fingerprint
        assert calibrate(path, seed=7).fingerprint != calibrate(path, seed=8).fingerprint

    def test_fingerprint_is_that_of_shape_and_ids(self) -> None:
        ids = torch.arange(6)
        wide, tall = Windows(ids.view(2, 3), {}), Windows(ids.view(3, 2), {})
        # sha256 of "2x3:" and six little-endian int64: a record of 2026 must be comparable with one of later years
        assert wide.fingerprint == "3c2923cef1dcc3c8eb28bac5ffef9525bf6e9749b365e57908ff66f6c0d78bb3"
        assert wide.fingerprint != tall.fingerprint
        assert Windows(ids.view(2, 3).t(), {}).fingerprint != tall.fingerprint
        assert Windows(ids.view(3, 2).t().contiguous(), {}).fingerprint == Windows(ids.view(3, 2).t(), {}).fingerprint


class TestRealTexts:
    @pytest.fixture
    def real(self, shared: Path) -> Path:
        folder = shared / "realdata"
        if not (folder / "tokenizers/gpt2").is_dir():
            pytest.skip("the real texts are not here")
        return folder

    @pytest.fixture
    def gpt2(self, real: Path) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_file=str(real / "tokenizers/gpt2/tokenizer.json"))

    def test_wikitext2_has_the_known_length(self, real: Path, gpt2: PreTrainedTokenizerFast) -> None:
        path = real / "text/wikitext2/test.joined.txt"
        got = evaluation_windows(str(path), lambda: gpt2, seqlen=2048, vocab_size=50257)
        assert got.provenance["tokens"] == 287_644
        assert got.ids.shape == (140, 2048)
        assert path.read_bytes()[: got.provenance["utf8_bytes"]].decode() == gpt2.decode(got.ids.flatten())

    def test_c4_documents(self, real: Path, gpt2: PreTrainedTokenizerFast) -> None:
        path = real / "text/c4/documents.jsonl"
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]
        got = calibration_windows(str(path), lambda: gpt2, nsamples=16, seqlen=256, seed=0, vocab_size=50257)
        assert got.ids.tolist() == published_documents(gpt2(texts)["input_ids"], 16, 256, 0)
