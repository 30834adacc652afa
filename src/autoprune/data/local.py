"""Documents of local files: plain text, JSON lines (also gzipped) and parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from autoprune.data.chat import Turn, turns_of
from autoprune.data.fields import Kind, document_field, is_turn, kind_of_value, why_not
from autoprune.data.sources import Source
from autoprune.errors import DataError
from autoprune.storage.files import file_sha256

_ONE_OBJECT = 'every line must be one JSON object such as {"text": "..."}'


def read_local(source: Source) -> tuple[list[Any], dict[str, Any]]:
    """The documents of a local file (texts, or conversations as lists of turns), its name and sha256 for the record.

    The record names the field that the documents were in.
    Raises: DataError for a file that is empty, unreadable, malformed, or holds white space only.
    """
    readers = {"txt": _read_txt, "jsonl": _read_jsonl, "parquet": _read_parquet}
    try:
        if source.file.stat().st_size == 0:
            raise DataError(f"{source.label}: the file is empty (0 bytes); give one that holds text")
        documents, field = readers[source.kind](source)
        # The name alone: a path would carry the layout of the user's machine into every result.
        found = {"file": source.file.name, "sha256": file_sha256(source.file)}
        return documents, found | ({"field": field} if field else {})
    except OSError as error:
        raise DataError(
            f"{source.label}: can't be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def _read_txt(source: Source) -> tuple[list[str], None]:
    """The whole file as one document, line ends as they are."""
    raw = source.file.read_bytes()
    try:
        return [raw.decode("utf-8").removeprefix("\ufeff")], None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.label}: not UTF-8 at byte offset {error.start} ({error.reason}); convert it with iconv"
        ) from error


def _read_jsonl(source: Source) -> tuple[list[Any], str | None]:
    """One document, a text or a conversation, from each line that isn't blank."""
    documents: list[Any] = []
    field: str | None = None
    talks = False
    for number, raw in _lines(source):
        record = _record(source, number, raw)
        if field is None:
            kinds = {name: kind_of_value(value) for name, value in record.items()}
            field = document_field(kinds)
            if field is None:
                raise DataError(
                    f"{source.label}: line {number} has the fields {_kinds(record)}: {why_not(kinds, 'field')}"
                )
            talks = kinds[field] == "conversation"
        value = record.get(field)
        if talks:
            documents.append(_conversation(source, number, field, value))
            continue
        if not isinstance(value, str):
            raise DataError(
                f"{source.label}: line {number} has no string in field `{field}` (it has {_kinds(record)}); mend or"
                " remove it"
            )
        documents.append(_encodable(source, number, value))
    return documents, field


def _conversation(source: Source, number: int, field: str, value: Any) -> list[Turn]:
    try:
        turns = turns_of(value)
    except ValueError as error:
        raise DataError(
            f"{source.label}: line {number} has no conversation in field `{field}`: {error}; mend or remove it"
        ) from error
    for turn in turns:
        _encodable(source, number, turn["content"])
        _encodable(
            source, number, json.dumps(turn, ensure_ascii=False, default=str)
        )  # what a template may know besides
    return turns


def _lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """Numbered lines (from 1) that aren't blank.

    Split at line feeds only: JSON strings may hold other line separators.
    """
    zipped = source.file.name.lower().endswith(".gz")
    try:
        opened: IO[bytes]
        with gzip.open(source.file) if zipped else source.file.open("rb") as opened:  # type: ignore[assignment]
            yield from ((number, raw) for number, raw in enumerate(opened, start=1) if raw.strip())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{source.label}: damaged or not gzip ({error}); download it again, or drop .gz from its name if it is"
            " plain"
        ) from error


def _record(source: Source, number: int, raw: bytes) -> dict[str, Any]:
    """The JSON object of one line."""
    if number == 1 and raw.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        raise DataError(f"{source.label}: it is one JSON list, not an object in every line; {_as_lines(source.file)}")
    try:
        record = json.loads(raw.decode("utf-8").removeprefix("\ufeff" if number == 1 else ""))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.label}: line {number} is not UTF-8 at byte {error.start} of the line; save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError, a number of absurd length, or a deep nest
        where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{source.label}: line {number} is not JSON ({where}); {_ONE_OBJECT}") from error
    if not isinstance(record, dict):
        raise DataError(f"{source.label}: line {number} holds {type(record).__name__}, not an object; {_ONE_OBJECT}")
    return record


def _as_lines(file: Path) -> str:
    """How to write a JSON list as lines, once."""
    made = str(file.with_name(f"{file.name.partition('.')[0]}.lines.jsonl"))
    opened = f"{'gzip.' if file.suffix == '.gz' else ''}open({str(file)!r})"
    return (
        f"write it so once, in Python: import gzip, json; rows = json.load({opened}); open({made!r}, 'w').writelines("
        f"json.dumps(row if isinstance(row, dict) else {{'text': row}}) + '\\n' for row in rows). Then give {made}"
    )


def _encodable(source: Source, number: int, text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{source.label}: line {number} holds a lone surrogate (character {error.start} of the text); mend or"
            " remove it"
        ) from error
    return text


def _kinds(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in record.items()) or "none"


def _read_parquet(source: Source) -> tuple[list[Any], str]:
    """One document from each row of the column that holds texts or conversations."""
    import pyarrow
    from pyarrow import parquet, types

    def kind(of: Any) -> Kind:
        if types.is_string(of) or types.is_large_string(of) or types.is_string_view(of):
            return "text"
        if types.is_dictionary(of):
            return kind(of.value_type)
        if types.is_list(of) or types.is_large_list(of):
            turn = of.value_type
            talks = types.is_struct(turn) and is_turn([turn.field(i).name for i in range(turn.num_fields)])
            return "conversation" if talks else "nested"
        return "nested" if types.is_nested(of) else "other"

    try:
        schema = parquet.read_schema(source.file)
        kinds = {field.name: kind(field.type) for field in schema}
        column = document_field(kinds)
        if column is None:
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise DataError(f"{source.label}: it has the columns {columns}: {why_not(kinds)}")
        # From an open file and not from its path: a path would make pyarrow read `key=value` folders above it as
        # columns.
        with source.file.open("rb") as file:
            values = parquet.read_table(file, columns=[column])[column].to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{source.label}: not a readable parquet file ({error}); download or write it again"
        ) from error
    if None in values:
        raise DataError(
            f"{source.label}: column `{column}` holds no text in row {values.index(None)}; remove such rows"
        )
    return values, column
