"""Datasets of the hub: its layout in a local mirror."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import C4_CARD, WIKITEXT_CARD, refused, write_c4, write_jsonl, write_parquet, write_wikitext

from autoprune.data.texts import MIRROR_VARIABLE, Corpus, parse_source, read_corpus

FLAG = "--calibration_data"


def read(word: str, purpose: Any = "calibration", cache: Path | None = None) -> Corpus:
    return read_corpus(parse_source(word, FLAG), purpose, str(cache) if cache else None)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


class TestHubLayout:
    @pytest.mark.parametrize("card", [False, True])
    def test_c4(self, mirror: Path, tmp_path: Path, card: bool) -> None:
        write_c4(mirror / "allenai/c4", ["t0", "t1"], [f"v{i}" for i in range(1200)])
        write_jsonl(mirror / "allenai/c4/en/c4-train.00001-of-01024.json.gz", [{"text": "not asked for"}])
        if card:
            (mirror / "allenai/c4/README.md").write_text(C4_CARD)
        corpus = read("c4", "calibration", tmp_path / "cache")
        assert list(corpus.documents) == ["t0", "t1"]
        assert corpus.provenance == {
            "source": "c4",
            "kind": "c4",
            "purpose": "calibration",
            "dataset": "allenai/c4",
            "config": None,
            "data_files": "en/c4-train.00000-of-01024.json.gz",
            "split": "train",
            "field": "text",
            "revision": None,
            "commit": None,
            "mirror": True,
            "documents": 2,
        }
        corpus = read("c4", "evaluation", tmp_path / "cache")
        assert list(corpus.documents) == [f"v{i}" for i in range(1100)]
        assert corpus.joiner == " "
        assert (corpus.provenance["split"], corpus.provenance["documents"]) == ("validation", 1100)
        assert corpus.provenance["data_files"] == "en/c4-validation.00000-of-00008.json.gz"

    @pytest.mark.parametrize("card", [False, True])
    def test_wikitext2(self, mirror: Path, tmp_path: Path, card: bool) -> None:
        write_wikitext(mirror / "Salesforce/wikitext")
        if card:
            (mirror / "Salesforce/wikitext/README.md").write_text(WIKITEXT_CARD)
        corpus = read("wikitext2", "calibration", tmp_path / "cache")
        assert corpus.text == "  = wikitext-2-raw-v1 = \n  train \n"
        corpus = read("wikitext2", "evaluation", tmp_path / "cache")
        assert corpus.text == "\n\n = wikitext-2-raw-v1 = \n\n\n test \n"
        assert (corpus.provenance["dataset"], corpus.provenance["config"]) == (
            "Salesforce/wikitext",
            "wikitext-2-raw-v1",
        )

    @pytest.mark.parametrize("layout", ["penn_treebank/{}/0000.parquet", "penn_treebank/ptb_text_only-{}.parquet"])
    def test_ptb(self, mirror: Path, tmp_path: Path, layout: str) -> None:
        for split in ("train", "test", "validation"):
            write_parquet(
                mirror / "ptb-text-only/ptb_text_only" / layout.format(split), sentence=[f"{split} <unk>", "n"]
            )
        assert read("ptb", "calibration", tmp_path / "cache").text == "train <unk> n"
        corpus = read("ptb", "evaluation", tmp_path / "cache")
        assert corpus.text == "test <unk> n"
        assert corpus.provenance["revision"] == "refs/convert/parquet"

    def test_any_dataset(self, mirror: Path, tmp_path: Path) -> None:
        for split in ("train", "validation"):
            write_jsonl(
                mirror / f"me/stories/{split}.jsonl", [{"n": 1, "story": f"{split} a"}, {"n": 2, "story": "b"}]
            )
        assert list(read("me/stories", "calibration", tmp_path / "cache").documents) == ["train a", "b"]
        corpus = read("me/stories", "evaluation", tmp_path / "cache")
        assert (list(corpus.documents), corpus.joiner) == (["validation a", "b"], "\n\n")
        assert (corpus.provenance["source"], corpus.provenance["split"]) == ("me/stories", "validation")

    def test_any_dataset_with_configurations(self, mirror: Path, tmp_path: Path) -> None:
        write_wikitext(mirror / "me/wiki")
        (mirror / "me/wiki/README.md").write_text(WIKITEXT_CARD)
        assert (
            read("me/wiki:wikitext-103-raw-v1", "calibration", tmp_path / "cache").documents[1]
            == " = wikitext-103-raw-v1 = \n"
        )
        refused(
            lambda: read("me/wiki", "calibration", tmp_path / "cache"),
            FLAG,
            "me/wiki",
            "wikitext-103-raw-v1",
            "chosen with me/wiki:CONFIG",
        )
        refused(
            lambda: read("me/wiki:no", "calibration", tmp_path / "cache"),
            "'no' not found",
            "wikitext-2-raw-v1",
            "me/wiki:CONFIG",
        )

    def test_changed_mirror_is_read_again(self, mirror: Path, tmp_path: Path) -> None:
        write_jsonl(mirror / "me/set/train.jsonl", [{"text": "before"}])
        assert list(read("me/set", "calibration", tmp_path / "cache").documents) == ["before"]
        changed = write_jsonl(mirror / "me/set/train.jsonl", [{"text": "after it"}])
        os.utime(changed, (2e9, 2e9))
        assert list(read("me/set", "calibration", tmp_path / "cache").documents) == ["after it"]

    def test_columns_that_decide_nothing(self, mirror: Path, tmp_path: Path) -> None:
        write_parquet(mirror / "me/set/train.parquet", title=["a"], body=["b"], n=[1])
        refused(
            lambda: read("me/set", "calibration", tmp_path / "cache"),
            "me/set",
            "title (string), body (string), n (int64)",
            f"{FLAG} FILE.jsonl",
        )

    def test_rows_without_text(self, mirror: Path, tmp_path: Path) -> None:
        write_parquet(mirror / "me/set/train.parquet", text=["a", None, "b", None])
        refused(
            lambda: read("me/set", "calibration", tmp_path / "cache"),
            "`text` of me/set holds no text in 2 rows",
            "FILE.jsonl",
        )

    def test_missing_split(self, mirror: Path, tmp_path: Path) -> None:
        write_jsonl(mirror / "me/set/train.jsonl", [{"text": "a"}])
        refused(
            lambda: read("me/set", "evaluation", tmp_path / "cache"),
            "evaluation needs the split test or validation",
            "me/set has train",
            "FILE.txt",
        )

    def test_blank_dataset(self, mirror: Path, tmp_path: Path) -> None:
        write_jsonl(mirror / "me/set/train.jsonl", [{"text": " "}])
        refused(lambda: read("me/set", "calibration", tmp_path / "cache"), "me/set", "only white space in 1 documents")

    def test_mirror_lacks_it(self, mirror: Path, tmp_path: Path) -> None:
        refused(
            lambda: read("c4", "calibration"),
            FLAG,
            "c4",
            MIRROR_VARIABLE,
            "no folder allenai/c4",
            "unset the variable",
        )
        (mirror / "Salesforce/wikitext").mkdir(parents=True)
        refused(
            lambda: read("wikitext2", "calibration"),
            "Salesforce/wikitext/README.md",
            "Salesforce/wikitext/wikitext-2-raw-v1",
            "add one",
        )
        (mirror / "allenai/c4").mkdir(parents=True)
        refused(
            lambda: read("c4", "calibration", tmp_path / "cache"),
            f"allenai/c4 in {MIRROR_VARIABLE}",
            "c4-train.00000-of-01024",
            "FILE.txt",
        )
