"""What the tests of autoprune.data share: tiny files of every kind, tiny tokenizers, and the published sampling."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autoprune.data.sources import Source
from autoprune.data.windows import Windows, calibration_windows, evaluation_windows
from autoprune.errors import DataError

VOCABULARY = {"<s>": 0, "<unk>": 1} | {f"w{i}": i + 2 for i in range(500)}


def word_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per word; a context of 8, so that every text is too long for it."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", model_max_length=8)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def no_tokenizer() -> NoReturn:
    raise AssertionError("the tokenizer is not needed")


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{(first + i) % 500}" for i in range(count))


def word_ids(text: str) -> list[int]:
    return [VOCABULARY.get(word, 1) for word in text.split()]


def calibrate(
    word: Path | str | Source, nsamples: int = 4, seqlen: int = 16, seed: int = 0, bos: bool = False, **more: Any
) -> Windows:
    options = {"load_tokenizer": lambda: word_tokenizer(bos), "vocab_size": 502, **more}
    return calibration_windows(
        str(word) if isinstance(word, Path) else word, nsamples=nsamples, seqlen=seqlen, seed=seed, **options
    )


def evaluate(word: Path | str | Source, seqlen: int = 16, **more: Any) -> Windows:
    options = {"load_tokenizer": word_tokenizer, "vocab_size": 502, **more}
    return evaluation_windows(_named(word), seqlen=seqlen, **options)


def _named(word: Path | str | Source) -> str | Source:
    return str(word) if isinstance(word, Path) else word


def published_one_text(ids: list[int], nsamples: int, seqlen: int, seed: int) -> list[list[int]]:
    """The published sampling of wikitext2, with the global generator as there."""
    random.seed(seed)
    drawn = []
    for _ in range(nsamples):
        start = random.randint(0, len(ids) - seqlen - 1)
        drawn.append(ids[start : start + seqlen])
    return drawn


def published_documents(documents: list[list[int]], nsamples: int, seqlen: int, seed: int) -> list[list[int]]:
    """The published sampling of c4."""
    random.seed(seed)
    drawn = []
    for _ in range(nsamples):
        while True:
            ids = documents[random.randint(0, len(documents) - 1)]
            if len(ids) > seqlen:
                break
        start = random.randint(0, len(ids) - seqlen - 1)
        drawn.append(ids[start : start + seqlen])
    return drawn


def refused(action: Callable[[], Any], *expected: str) -> str:
    """The message of the DataError that the action ends in; it holds everything expected."""
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    for part in expected:
        assert part in message, f"{part!r} is not in {message!r}"
    return message


def write_txt(folder: Path, text: str) -> Path:
    (folder / "a.txt").write_text(text, encoding="utf-8")
    return folder / "a.txt"


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


def write_texts(path: Path, texts: list[str], column: str = "text") -> Path:
    """Documents as JSON lines (gzipped where the name says so) or parquet."""
    if path.suffix == ".parquet":
        return write_parquet(path, **{column: texts})
    return write_jsonl(path, [{column: text} for text in texts])


def _configuration(name: str) -> str:
    files = "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in ("test", "train", "validation"))
    return f"- config_name: {name}\n  data_files:\n{files}"


WIKITEXT_CARD = (
    "---\nconfigs:\n" + _configuration("wikitext-103-raw-v1") + _configuration("wikitext-2-raw-v1") + "---\n"
)
# The card of c4 promises both splits in full; one shard of one split is asked for.
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: en.noclean
  data_files:
  - split: train
    path: en.noclean/c4-train.*.json.gz
dataset_info:
- config_name: en
  features:
  - name: text
    dtype: string
  - name: timestamp
    dtype: string
  - name: url
    dtype: string
  splits:
  - name: train
    num_bytes: 828589180707
    num_examples: 364868892
  - name: validation
    num_bytes: 825767266
    num_examples: 364608
  download_size: 326778635540
  dataset_size: 1657178361414
---
"""


def write_c4(folder: Path, train: list[str], validation: list[str]) -> None:
    for name, texts in [("train.00000-of-01024", train), ("validation.00000-of-00008", validation)]:
        write_jsonl(
            folder / f"en/c4-{name}.json.gz",
            [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "u"} for text in texts],
        )


def write_wikitext(folder: Path) -> None:
    for config in ("wikitext-2-raw-v1", "wikitext-103-raw-v1"):
        for split in ("train", "test", "validation"):
            write_parquet(
                folder / config / f"{split}-00000-of-00001.parquet", text=["", f" = {config} = \n", f" {split} \n"]
            )
