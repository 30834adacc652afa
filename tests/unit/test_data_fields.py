"""Which field holds the text is never guessed: ids and conversations are not taken for texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from autoprune.data.fields import Kind, kind_of_value, text_field, why_not
from autoprune.data.hub import kind_of_feature
from autoprune.data.texts import parse_source, read_corpus
from autoprune.errors import DataError
from autoprune.recipe.checks import comma_list

SHARE_GPT = {"id": "identity_0", "conversations": [{"from": "human", "value": "tell me of the fox"}]}
MESSAGES = {"prompt_id": "a1", "messages": [{"role": "user", "content": "tell me of the fox"}]}


@pytest.mark.parametrize(
    ("kinds", "field"),
    [
        ({"text": "text", "url": "text"}, "text"),
        ({"text": "text", "messages": "conversation"}, "text"),
        ({"text": "other", "story": "text"}, None),
        ({"story": "text", "length": "other"}, "story"),
        ({"content": "text", "meta": "nested"}, "content"),
        ({"summary": "text", "meta": "nested"}, None),
        ({"id": "text", "conversations": "conversation"}, None),
        ({"content": "text", "conversations": "conversation"}, None),
        ({"question": "text", "answer": "text"}, None),
        *(
            ({name: "text"}, None)
            for name in (
                "messages",
                "conversations",
                "id",
                "uuid",
                "doc_id",
                "url",
                "title",
                "lang",
                "source_file",
                "Id",
                "sha256",
                "docid",
                "docno",
                "idx",
                "sampleId",
                "threadURL",
                "permalink",
            )
        ),
        *(
            ({name: "text"}, name)
            for name in ("raw", "valid", "paid", "statement", "identity", "caption", "profile", "piano", "grid")
        ),
    ],
)
def test_the_field_that_is_plainly_the_text(kinds: dict[str, Kind], field: str | None) -> None:
    assert text_field(kinds) == field


def write(tmp_path: Path, rows: list[dict[str, Any]], ending: str) -> str:
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", [SHARE_GPT, MESSAGES], ids=["conversations", "messages"])
def test_conversations_are_documents_of_turns(tmp_path: Path, row: dict[str, Any], ending: str) -> None:
    """They are not taken for texts; whether there is a template to render them is another question."""
    found = read_corpus(parse_source(write(tmp_path, [row] * 3, ending), "--calibration_data"), "calibration")
    assert found.talks
    assert found.provenance["field"] == ("messages" if "messages" in row else "conversations")
    assert len(found.documents) == 3
    kinds: dict[str, Kind] = {name: kind_of_value(value) for name, value in row.items()}
    assert text_field(kinds) is None
    assert "not rendered here" in why_not(kinds)


@pytest.mark.parametrize("value", [None, 5, ["a list"]])
def test_a_text_that_is_no_string_is_called_so(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match="its field `text` is no string; make it one"):
        read_corpus(parse_source(write(tmp_path, [{"text": value}], "jsonl"), "--eval_data"), "evaluation")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_record_names_the_field(tmp_path: Path, ending: str) -> None:
    source = parse_source(write(tmp_path, [{"story": "the quick fox", "n": 1}] * 2, ending), "--eval_data")
    found = read_corpus(source, "evaluation")
    assert found.provenance["field"] == "story"
    assert list(found.documents) == ["the quick fox"] * 2


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_strings_of_every_kind_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    parquet.write_table(pa.table({"text": pa.array(["the fox", "the dog"]).cast(kind)}), tmp_path / "rows.parquet")
    source = parse_source(str(tmp_path / "rows.parquet"), "--eval_data")
    assert list(read_corpus(source, "evaluation").documents) == ["the fox", "the dog"]


def test_columns_of_datasets_are_judged_alike() -> None:
    talk = datasets.Dataset.from_list([{**SHARE_GPT, "tags": ["a"], "meta": {"b": 1}, "score": 1.0}])
    found = {name: kind_of_feature(feature) for name, feature in talk.features.items()}
    assert found == {
        "id": "text",
        "conversations": "conversation",
        "tags": "nested",
        "meta": "nested",
        "score": "other",
    }
    assert kind_of_value(MESSAGES["messages"]) == "conversation"


def test_commas_in_the_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c, d.txt"):
        Path(name).touch()
    assert comma_list("a,b.txt") == ("a,b.txt",)
    assert comma_list("wikitext2, a,b.txt ,c, d.txt,ptb") == ("wikitext2", "a,b.txt", "c, d.txt", "ptb")
    assert comma_list("a,x.txt") == ("a", "x.txt")
    assert comma_list(f"{tmp_path / 'a,b.txt'},ptb") == (str(tmp_path / "a,b.txt"), "ptb")
