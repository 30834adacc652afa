"""The papers' protocols for the named sets, end to end, through a mirror in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_fixtures import (
    byte_tokenizer,
    calibrate,
    evaluate,
    published_documents,
    published_one_text,
    word_ids,
    words,
    write_texts,
)

from autoprune.data.texts import MIRROR_VARIABLE


class TestNamedSets:
    """The papers' protocols, end to end, through a mirror in the hub's layout."""

    @pytest.fixture
    def mirror(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
        return tmp_path / "mirror"

    def test_c4(self, mirror: Path, tmp_path: Path) -> None:
        train = [words(3 * i, i) for i in range(30)]
        validation = [words(4, i) for i in range(1200)]
        write_texts(mirror / "allenai/c4/en/c4-train.00000-of-01024.json.gz", train)
        write_texts(mirror / "allenai/c4/en/c4-validation.00000-of-00008.json.gz", validation)
        got = calibrate("c4", nsamples=12, datasets_cache_dir=str(tmp_path / "cache"))
        assert got.ids.tolist() == published_documents([word_ids(text) for text in train], 12, 16, 0)
        ids = word_ids(" ".join(validation[:1100]))
        assert len(ids) == 4400
        got = evaluate("c4", seqlen=3, datasets_cache_dir=str(tmp_path / "cache"))
        assert got.ids.flatten().tolist() == ids[: 256 * 3]  # cut at 256 windows
        got = evaluate("c4", seqlen=30, datasets_cache_dir=str(tmp_path / "cache"))
        assert got.ids.flatten().tolist() == ids[: 4400 // 30 * 30]  # fewer tokens than that
        assert evaluate("c4", seqlen=3, max_windows=5, datasets_cache_dir=str(tmp_path / "cache")).ids.shape == (5, 3)
        assert evaluate("c4", seqlen=3, max_windows=500, datasets_cache_dir=str(tmp_path / "cache")).ids.shape == (
            256,
            3,
        )

    def test_wikitext2(self, mirror: Path, tmp_path: Path) -> None:
        rows = {
            split: ["", " = a = \n", f" {words(40, first)} \n", ""]
            for split, first in [("train", 0), ("test", 100), ("validation", 200)]
        }
        for split, texts in rows.items():
            write_texts(mirror / f"Salesforce/wikitext/wikitext-2-raw-v1/{split}-00000-of-00001.parquet", texts)
        options = {"load_tokenizer": byte_tokenizer, "vocab_size": 256, "datasets_cache_dir": str(tmp_path / "cache")}
        ids = byte_tokenizer()(" ".join(rows["train"]))["input_ids"]
        assert calibrate("wikitext2", nsamples=7, **options).ids.tolist() == published_one_text(ids, 7, 16, 0)
        ids = byte_tokenizer()("\n\n".join(rows["test"]))["input_ids"]
        assert evaluate("wikitext2", **options).ids.flatten().tolist() == ids[: len(ids) // 16 * 16]

    def test_ptb(self, mirror: Path, tmp_path: Path) -> None:
        rows = {
            split: [words(9, first + i) + " <unk> N" for i in range(10)]
            for split, first in [("train", 0), ("test", 100), ("validation", 200)]
        }
        for split, texts in rows.items():
            write_texts(mirror / f"ptb-text-only/ptb_text_only/penn_treebank/{split}/0000.parquet", texts, "sentence")
        options = {"load_tokenizer": byte_tokenizer, "vocab_size": 256, "datasets_cache_dir": str(tmp_path / "cache")}
        ids = byte_tokenizer()(" ".join(rows["train"]))["input_ids"]
        got = calibrate("ptb", nsamples=7, **options)
        assert got.ids.tolist() == published_one_text(ids, 7, 16, 0)
        assert (got.provenance["revision"], got.provenance["split"], got.provenance["tokens"]) == (
            "refs/convert/parquet",
            "train",
            len(ids),
        )
        ids = byte_tokenizer()(" ".join(rows["test"]))["input_ids"]
        assert evaluate("ptb", **options).ids.flatten().tolist() == ids[: len(ids) // 16 * 16]

    def test_hub_dataset_is_drawn_by_document(self, mirror: Path, tmp_path: Path) -> None:
        texts = [words(5 * i, i) for i in range(12)]
        write_texts(mirror / "me/set/train.json.gz", texts)
        got = calibrate("me/set", nsamples=5, datasets_cache_dir=str(tmp_path / "cache"))
        assert got.ids.tolist() == published_documents([word_ids(text) for text in texts], 5, 16, 0)
        assert (got.provenance["dataset"], got.provenance["kind"]) == ("me/set", "hub")
