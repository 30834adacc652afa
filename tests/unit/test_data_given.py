"""Data from Python: texts, datasets, token ids and batches give the windows that the same in a file would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from data_fixtures import calibrate, evaluate, no_tokenizer, refused, word_ids, word_tokenizer, words, write_texts
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from autoprune.data.given import given
from autoprune.data.handed import EVALUATION, recipe_given, source_of
from autoprune.data.mix import split_mix
from autoprune.data.sources import parse_source
from autoprune.data.windows import Windows, calibration_windows, evaluation_windows
from autoprune.errors import DataError, RecipeError
from autoprune.recipe.recipe import Recipe

FLAG = "--calibration_data"
TEXTS = [words(40, 100 * i) for i in range(3)] + [words(5)]
ROWS = torch.arange(96).reshape(6, 16)


class Indexed:
    """A torch Dataset, as many write it: without an iterator, and without an end."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        return self._items[i % len(self)]


def drawn(data: Any, **options: Any) -> Windows:
    """The calibration windows of what was handed over."""
    recipe = recipe_given({"model": "m", "calibration_data": data, "sparsity_ratio": 0.5, "nsamples": 4})
    return calibrate(source_of(recipe, recipe.calibration.calibration_data, FLAG), **options)


def measured(data: Any, **options: Any) -> dict[str, Windows]:
    """The windows of all texts that were handed over, by name."""
    recipe = of(eval_data=data)
    sources = [source_of(recipe, word, EVALUATION) for word in recipe.evaluation.eval_data]
    return {source.name: evaluate(source, **options) for source in sources}


def of(**options: Any) -> Recipe:
    return recipe_given({"model": "m", "sparsity_ratio": 0.5, **options})


@pytest.mark.parametrize(
    "data",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        [{"text": text, "id": "x"} for text in TEXTS],
        pandas.DataFrame({"text": TEXTS, "n": [1] * 4}),
        Dataset.from_dict({"text": TEXTS, "n": [1] * 4}),
        Dataset.from_dict({"story": TEXTS})["story"],
        pandas.Series(TEXTS, index=range(7, 11)),
        pandas.Series(TEXTS).astype("category"),
        pyarrow.table({"text": TEXTS, "n": [1] * 4}),
        pyarrow.array(TEXTS),
        Indexed([{"text": text} for text in TEXTS]),
    ],
    ids=[
        *("list", "tuple", "array", "records", "frame", "dataset", "column"),
        *("series", "category", "arrow", "arrow-column", "indexed"),
    ],
)
def test_texts_give_the_windows_of_the_same_texts_in_a_file(data: Any, tmp_path: Path) -> None:
    file = write_texts(tmp_path / "a.jsonl", TEXTS)
    assert drawn(data).ids.equal(calibrate(file).ids)
    (got,) = measured(data).values()
    assert got.ids.equal(evaluate(file).ids)
    assert got.provenance["sha256"] == drawn(data).provenance["sha256"]


def test_one_long_row_of_ids_is_one_text(tmp_path: Path) -> None:
    text = words(300)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    ids = np.array(word_ids(text))
    row = torch.tensor(word_ids(text))[None]  # as a tokenizer returns it
    flat = (word_ids(text), torch.tensor(word_ids(text), dtype=torch.int32), ids, list(ids), list(row[0]))
    for data in (*flat, row, row.tolist(), {"input_ids": row}):
        assert drawn(data, load_tokenizer=no_tokenizer).ids.equal(calibrate(tmp_path / "a.txt").ids)
        (got,) = measured(data, load_tokenizer=no_tokenizer).values()
        assert got.ids.equal(evaluate(tmp_path / "a.txt").ids)


def batches(size: int) -> DataLoader[Any]:
    data = [{"input_ids": row, "attention_mask": torch.ones(16), "labels": row} for row in ROWS]
    return DataLoader(data, batch_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        ROWS.tolist(),
        list(ROWS),
        {"input_ids": ROWS.tolist(), "attention_mask": [[1] * 16] * 6},
        batches(4),
        batches(1),
        Dataset.from_dict({"input_ids": ROWS.tolist(), "text": ["a"] * 6}),
        [{"input_ids": row} for row in ROWS.tolist()],
        DataLoader(TensorDataset(ROWS, ROWS.clone()), batch_size=4),
        TensorDataset(ROWS, torch.ones_like(ROWS)),
        [(row[None], row[None]) for row in ROWS],
        Indexed([{"input_ids": row} for row in ROWS]),
        pandas.Series(list(ROWS.numpy()), index=range(7, 13)),
    ],
    ids=[
        *("tensor", "lists", "list-of-tensors", "encoding", "loader-4", "loader-1", "dataset", "records"),
        *("loader-of-pairs", "pairs", "as-papers-do", "indexed", "series"),
    ],
)
def test_rows_of_ids_are_the_windows(data: Any, tmp_path: Path) -> None:
    save_file({"input_ids": ROWS}, tmp_path / "ids.safetensors")
    assert drawn(data, load_tokenizer=no_tokenizer).ids.equal(calibrate(tmp_path / "ids.safetensors").ids)
    (got,) = measured(data, load_tokenizer=no_tokenizer).values()
    assert got.ids.equal(ROWS)


def test_rows_say_how_many_there_are_and_how_long() -> None:
    options = of(calibration_data=ROWS).calibration
    assert (options.nsamples, options.seqlen) == (6, 16)
    assert of(calibration_data=ROWS, nsamples=3).calibration.nsamples == 3
    assert of(eval_data=ROWS).calibration.seqlen == 16
    one, long = ROWS.reshape(1, 96), torch.zeros(1, 4000, dtype=torch.int64)
    assert of(calibration_data=one).calibration.seqlen == 96
    for text in (of(calibration_data=one, seqlen=16), of(calibration_data=long)):  # a text, cut by the options
        assert (text.calibration.nsamples, text.calibration.seqlen) in ((128, 16), (128, None))
    with pytest.raises(DataError, match="its rows are 16 tokens long, but seqlen is 8; set --seqlen 16"):
        drawn(ROWS, seqlen=8)


def test_of_an_endless_loader_only_what_is_asked_for_is_taken() -> None:
    def endless() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield {"input_ids": ROWS[:3]}

    assert drawn(endless()).ids.equal(torch.cat([ROWS[:3], ROWS[:1]]))


def test_the_record_names_what_it_was() -> None:
    listed, data = drawn(TEXTS), drawn(Dataset.from_dict({"text": TEXTS}))
    assert (listed.provenance["source"], listed.provenance["kind"]) == ("list of 4 strings", "strings")
    assert data.provenance["source"] == "Dataset of 4 rows, column text"
    assert data.provenance["field"] == "text"
    assert drawn(ROWS).provenance["source"] == "Tensor of 6 x 16 token ids"
    word = of(calibration_data=TEXTS).calibration.calibration_data
    assert word == f"list of 4 strings (sha256 {listed.provenance['sha256'][:12]})"
    assert word != of(calibration_data=[*TEXTS[:3], "other words"]).calibration.calibration_data
    refused(lambda: parse_source(word, FLAG), "handed over in Python", "hand them over again")


def test_conversations() -> None:
    """They go to the tokenizer's chat template, as those of a file do."""
    talks = [[{"role": "user", "content": words(3, i)}, {"role": "assistant", "content": words(30)}] for i in range(4)]
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} {% endfor %}"
    records = [{"messages": talk, "id": "x"} for talk in talks]
    kinds = (talks, records, Dataset.from_list(records))
    made = [drawn(data, load_tokenizer=lambda: tokenizer) for data in kinds]
    assert all(windows.ids.equal(made[0].ids) for windows in made)
    assert [windows.provenance["source"] for windows in made] == [
        f"{kind} of 4 conversations" for kind in ("list", "list", "Dataset")
    ]
    refused(lambda: drawn(talks), "no chat template")
    refused(lambda: of(calibration_data=talks[0]), "is one conversation; give a list of conversations")


def test_the_hash_tells_items_apart() -> None:
    assert given(["ab", "c"], FLAG).sha256 != given(["a", "bc"], FLAG).sha256
    assert given(ROWS, FLAG).sha256 != given(ROWS.reshape(12, 8), FLAG).sha256


def test_several_texts_to_measure(tmp_path: Path) -> None:
    file = write_texts(tmp_path / "a.jsonl", TEXTS)
    named = measured({"mine": TEXTS, "file": file, "rows": ROWS})
    assert list(named) == ["mine", "file", "rows"]
    assert named["mine"].ids.equal(named["file"].ids)
    assert of(eval_data={"mine": TEXTS}).evaluation.eval_data[0].startswith("mine: list of 4 strings (sha256 ")
    listed = measured([TEXTS, str(file), Dataset.from_dict({"text": TEXTS})])
    assert list(listed) == ["list of 4 strings", str(file), "Dataset of 4 rows, column text"]
    assert of(eval_data=[str(file), "wikitext2"]).evaluation.eval_data == (str(file), "wikitext2")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3.5, ["3.5 is of type float; give a path or name, a list of strings"]),
        ({"a": 1}, ["is of type dict"]),
        ([], ["a list without any items"]),
        (iter([]), ["a list_iterator without any items (an iterator gives them once)"]),
        ([None], ["first item is of type NoneType"]),
        (["one text", 7], ["item 1 of the list is of type int and no string (7)"]),
        (torch.rand(4, 16), ["whole numbers, and these are float32"]),
        (ROWS.reshape(2, 3, 16), ["shape [2, 3, 16]"]),
        ([[1, 2, 3], [4, 5]], ["has rows of 2 token ids, and those before have 3", "give the texts"]),
        (
            [{"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0]}],
            ["is padded (1 of 3 places, by its attention_mask)", "without padding"],
        ),
        ([(ROWS[:1], torch.tensor([[1] * 15 + [0]]))], ["is padded (1 of 16 places"]),
        ([b"a text"], ["a list whose first item is of type bytes"]),
        ([[ROWS[0], ROWS[1]]], ["a list whose first item is of type list"]),
        ([{"input_ids": [1, 2]}, {"labels": [1]}], ["item 1 of the list has no `input_ids`, only labels"]),
        ([{"a": "x", "b": "y"}], ["records with the fields a, b", "rename the field"]),
        (Dataset.from_dict({"a": ["x"], "b": ["y"]}), ["Dataset with the columns a, b", "data['a']"]),
        (Dataset.from_dict({"text": []}), ["a Dataset without any rows"]),
        (Dataset.from_dict({"text": ["x", None]}), ["item 1 of the Dataset is of type NoneType"]),
        (DatasetDict(train=Dataset.from_dict({"text": ["x"]})), ["holds the splits train", "data['train']"]),
        (Dataset.from_dict({"text": ["x"]}).to_iterable_dataset(), ["list(data.take(1000))"]),
        (["c4"], ["'c4' is the name of a source", "without a list"]),
        (b"bytes", ["of type bytes"]),
        (bytearray(b"abc"), ["of type bytearray"]),
        ((ROWS, torch.ones_like(ROWS)), ["only 0 and 1 beside them", "give the token ids alone"]),
        ([ROWS[0], torch.ones_like(ROWS[0])], ["only 0 and 1 beside them"]),
        (ROWS.to("meta"), ["on the meta device have no values"]),
        (torch.nested.nested_tensor([ROWS[0], ROWS[0][:3]], layout=torch.jagged), ["has rows of 3 token ids"]),
        ({"a text", "another"}, ["a set has another order in every process", "sorted(texts)"]),
        (DataLoader([{"input_ids": [1, 2]}] * 2, batch_size=2), ["with_format('torch')"]),  # type: ignore[arg-type]
    ],
    ids=lambda value: "" if isinstance(value, list) else type(value).__name__,
)
def test_what_can_not_be_used_is_named(data: Any, says: list[str]) -> None:
    refused(lambda: of(calibration_data=data), FLAG, *says)


def test_odd_layouts_are_read() -> None:
    expected = drawn(ROWS).fingerprint
    numbers = ROWS.numpy()
    for odd in (numbers.astype(">i8"), numbers[::-1].copy()[::-1], numbers.astype("uint64"), ROWS.to_sparse()):
        assert drawn(odd).fingerprint == expected
    assert drawn(pandas.DataFrame({0: TEXTS})).fingerprint == drawn(TEXTS).fingerprint


def test_a_dataset_is_read_in_whatever_format_it_is_shown() -> None:
    rows, texts = Dataset.from_dict({"input_ids": ROWS.tolist()}), Dataset.from_dict({"text": TEXTS})
    for form in ("torch", "numpy", "pandas", "arrow"):
        assert drawn(rows.with_format(form)).fingerprint == drawn(ROWS).fingerprint
        assert drawn(texts.with_format(form)).fingerprint == drawn(TEXTS).fingerprint
    made = texts.with_transform(lambda batch: {"input_ids": [word_ids(t)[:5] for t in batch["text"]]})
    ids = given(made, FLAG).ids
    assert ids is not None
    assert ids.shape == (4, 5)


def test_half_a_surrogate_pair_is_named() -> None:
    refused(lambda: drawn([words(40) + "\ud800 and on"]), "half of a surrogate pair", "ud800", "'ignore'")


def test_a_list_of_blanks_to_measure_is_a_text_without_any() -> None:
    refused(lambda: measured(["", " "]), "only white space in 2 documents")


def test_errors_quote_a_line_of_the_value() -> None:
    long = "and so on\n" * 100_000
    for data in ([[long]], {"text": long}, [None, long], [long, 3]):
        message = refused(lambda data=data: of(calibration_data=data), FLAG)  # type: ignore[misc]
        assert len(message) < 400, message[:500]
        assert "\n" not in message
    with pytest.raises(RecipeError, match=r"in a list: \[text\]") as caught:
        of(calibration_data=long)
    assert len(str(caught.value)) < 400


def test_a_text_without_a_list_and_a_mixed_list() -> None:
    refused(lambda: parse_source("It was a dark night", EVALUATION), "in a list: [text]")
    refused(lambda: of(eval_data=["demo", "It was a dark night"]), "'demo' is the name of a source", "a text")
    long = "It was a dark, dark night. " * 99
    assert len(refused(lambda: of(eval_data={"mine": long}), "in a list: [text]")) < 400
    assert len(refused(lambda: split_mix(long), "in a list: [text]")) < 400
    refused(lambda: of(eval_data={"": TEXTS}), "is no name for a text")
    refused(lambda: of(eval_data={"a" * 61: TEXTS}), "is no name for a text")


def test_documents_that_are_too_short_are_told_how_to_be_joined() -> None:
    refused(lambda: drawn([words(9)] * 5), "the longest of its 5 documents has 9 tokens", '["\\n\\n".join(texts)]')
    assert drawn([" ".join([words(9)] * 5)]).ids.shape == (4, 16)


def test_words_are_taken_as_before() -> None:
    same = {"load_tokenizer": no_tokenizer, "seqlen": 4, "vocab_size": 9}
    refused(lambda: evaluation_windows("gone.txt", **same), "no such file")  # type: ignore[arg-type]
    refused(lambda: calibration_windows("gone.txt", nsamples=1, seed=0, **same), "no such file")  # type: ignore[arg-type]
