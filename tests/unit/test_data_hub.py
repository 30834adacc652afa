"""Datasets of the hub: its layout in a local mirror, what is asked of it, and what happens when it doesn't answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from data_fixtures import C4_CARD, WIKITEXT_CARD, refused, write_c4, write_jsonl, write_parquet, write_wikitext

from autoprune.data import hub
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


class TestHub:
    """What is asked of the hub, and what happens when it doesn't answer; nothing here opens a connection."""

    @pytest.fixture(autouse=True)
    def no_mirror_no_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def answer(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def dataset_info(_self: Any, repo: str, **options: Any) -> None:
            asked.append({"repo": repo, **options})
            if error:
                raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        return asked

    @pytest.mark.parametrize("word", ["c4", "wikitext2", "ptb", "me/set", "me/set:config"])
    def test_unreachable(self, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.answer(monkeypatch, ConnectionError("no route\nto host"))
        offline: list[bool] = []
        load_dataset = datasets.load_dataset

        def spy(*args: Any, **options: Any) -> Any:
            offline.append(datasets.config.HF_HUB_OFFLINE)
            return load_dataset(*args, **options)

        monkeypatch.setattr(datasets, "load_dataset", spy)
        source = parse_source(word, "--eval_data")
        repo = hub.NAMED_SETS[word].repo if word in hub.NAMED_SETS else "me/set"
        message = refused(
            lambda: read_corpus(source, "evaluation", str(tmp_path / "cache")),
            f"--eval_data {word}: dataset {repo} could not be fetched (ConnectionError: no route to host)",
            "not in the datasets cache",
            "--eval_data FILE.txt",
            f"{MIRROR_VARIABLE}=DIR",
        )
        assert ("nor is there a local file" in message) == (source.kind == "hub")
        assert [(call["repo"], call["timeout"]) for call in asked] == [(repo, hub.HUB_TIMEOUT_SECONDS)]
        assert offline == [True]  # so that `datasets` looks in its cache and doesn't try the hub again and again
        assert datasets.config.HF_HUB_OFFLINE is False

    def test_offline_mode_asks_nobody(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.answer(monkeypatch, None)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        refused(
            lambda: read("ptb", "evaluation", tmp_path / "cache"),
            "ptb-text-only/ptb_text_only",
            "HF_HUB_OFFLINE",
            "FILE.txt",
        )
        assert not asked
        assert datasets.config.HF_HUB_OFFLINE is True

    def test_unknown_dataset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = huggingface_hub.errors.RepositoryNotFoundError
        self.answer(
            monkeypatch, kind.__new__(kind, "404")
        )  # its constructor wants a response of whichever HTTP library is in use
        refused(
            lambda: read("me/typo"),
            FLAG,
            "me/typo",
            "neither an existing file nor a hub dataset",
            "check the name",
            "FILE.txt",
        )

    @pytest.mark.parametrize(
        ("word", "purpose"),
        [("c4", "calibration"), ("c4", "evaluation"), ("wikitext2", "evaluation"), ("ptb", "calibration")],
    )
    def test_what_is_asked_for(self, word: str, purpose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def load_dataset(path: str, **options: Any) -> Any:
            assert datasets.config.HF_HUB_OFFLINE is False
            asked.append((path, options["name"], options["revision"], options["data_files"], options["cache_dir"]))
            return datasets.DatasetDict(
                {split: datasets.Dataset.from_dict({"text": ["a"]}) for split in ("train", "test", "validation")}
            )

        self.answer(monkeypatch, None)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        if word == "c4":  # what is loaded has the one split that was asked for
            monkeypatch.setattr(hub, "SPLITS", {"calibration": ("train",), "evaluation": ("validation",)})
        corpus = read(word, purpose, Path("kept"))
        expected = {
            ("c4", "calibration"): ("allenai/c4", None, None, {"train": "en/c4-train.00000-of-01024.json.gz"}, "kept"),
            ("c4", "evaluation"): (
                "allenai/c4",
                None,
                None,
                {"validation": "en/c4-validation.00000-of-00008.json.gz"},
                "kept",
            ),
            ("wikitext2", "evaluation"): ("Salesforce/wikitext", "wikitext-2-raw-v1", None, None, "kept"),
            ("ptb", "calibration"): ("ptb-text-only/ptb_text_only", None, "refs/convert/parquet", None, "kept"),
        }
        assert asked == [expected[word, purpose]]
        assert (corpus.provenance["mirror"], corpus.provenance["commit"]) == (False, None)

    def test_failed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_dataset(path: str, **options: Any) -> Any:
            raise OSError("disk full " * 100)

        self.answer(monkeypatch, None)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = refused(
            lambda: read("c4"),
            "allenai/c4 could not be fetched (OSError: disk full",
            "...",
            f"{FLAG} FILE.txt",
            MIRROR_VARIABLE,
        )
        assert len(message) < 700

    def test_downloaded_shard_serves_without_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        commit = "0123456789abcdef" * 2 + "01234567"
        folder = tmp_path / "hub/datasets--allenai--c4"
        write_c4(folder / "snapshots" / commit, ["t0"], ["v0"])
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text(commit)
        self.answer(monkeypatch, ConnectionError("no route"))
        corpus = read("c4", "evaluation", tmp_path / "cache")
        assert list(corpus.documents) == ["v0"]
        assert (corpus.provenance["commit"], corpus.provenance["mirror"]) == (commit, False)

    def test_prepared_dataset_serves_without_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        commit = "0123456789abcdef" * 2 + "01234567"
        write_wikitext(tmp_path / "wikitext")
        (tmp_path / "wikitext/README.md").write_text(WIKITEXT_CARD)
        datasets.load_dataset(str(tmp_path / "wikitext"), "wikitext-2-raw-v1", cache_dir=str(tmp_path / "cache"))
        (prepared,) = [
            path for path in (tmp_path / "cache/wikitext/wikitext-2-raw-v1/0.0.0").iterdir() if path.is_dir()
        ]
        target = tmp_path / "cache/Salesforce___wikitext/wikitext-2-raw-v1/0.0.0" / commit
        target.parent.mkdir(parents=True)
        prepared.rename(target)
        self.answer(monkeypatch, ConnectionError("no route"))
        corpus = read("wikitext2", "evaluation", tmp_path / "cache")
        assert corpus.text == "\n\n = wikitext-2-raw-v1 = \n\n\n test \n"
        assert corpus.provenance["commit"] == commit
