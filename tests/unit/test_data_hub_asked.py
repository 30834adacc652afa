"""Datasets of the hub: what is asked of it, and what happens when it doesn't answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from data_fixtures import WIKITEXT_CARD, refused, write_c4, write_wikitext

from autoprune.data import hub
from autoprune.data.texts import MIRROR_VARIABLE, Corpus, parse_source, read_corpus

FLAG = "--calibration_data"


def read(word: str, purpose: Any = "calibration", cache: Path | None = None) -> Corpus:
    return read_corpus(parse_source(word, FLAG), purpose, str(cache) if cache else None)


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
