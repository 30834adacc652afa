"""Results as JSON, both ways. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.results.types import EvaluationRow

UNFINISHED = ".unfinished"  # the end of the stem of what a run that was stopped has noted


def to_jsonable(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump_json(value: Any) -> str:
    """Indented JSON of any result; NaN and infinity are refused, for they are not JSON."""
    return json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n"


def from_jsonable(kind: Any, raw: Any) -> Any:
    """The inverse of ``to_jsonable`` for a value declared as ``kind``: dataclasses, tuples and dictionaries of them,
    or None.

    Fields that the record lacks keep their defaults; those that nobody knows are left out.
    Raises: TypeError if a field without a default is missing.
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if raw is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return from_jsonable(next(one for one in inside if one is not type(None)), raw)
    if origin is tuple:
        return tuple(from_jsonable(inside[0], one) for one in raw)
    if origin is dict:
        return {key: from_jsonable(inside[1], one) for key, one in raw.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = [f.name for f in dataclasses.fields(kind) if f.name in raw]
        return kind(**{name: from_jsonable(hints[name], raw[name]) for name in known})  # type: ignore[operator]
    return raw


def row_from_json(raw: Mapping[str, Any]) -> EvaluationRow:
    """A row as it was before ``to_jsonable``."""
    row: EvaluationRow = from_jsonable(EvaluationRow, raw)
    return row


def read_rows(paths: Iterable[Path]) -> list[EvaluationRow]:
    """All rows of result files, in order: of ``autoprune bench``, `make demo`, ``--save_ppl`` and ``--save_zeroshot``.

    A directory stands for its ``results.json``, or for all its tables of single runs.
    Raises: DataError naming the file that is missing or holds no results.
    """
    rows: list[EvaluationRow] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            grid = path / "results.json"
            tables = sorted({*path.glob("log_*.json"), *path.glob("zeroshot_*.json")})
            found = [grid] if grid.is_file() else [file for file in tables if not file.stem.endswith(UNFINISHED)]
        if not found:
            raise DataError(f"{path}: no results.json and no log_*.json or zeroshot_*.json lie in this directory")
        for file in found:
            rows += _read(file)
    return rows


def _read(file: Path) -> list[EvaluationRow]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content if isinstance(content, list) else [content]
        records = [entry.get("row", entry) for entry in entries]
        costs = [entry.get("cost") for entry in entries]
        return [
            row_from_json({**record, "cost": record.get("cost") or cost})
            for record, cost in zip(records, costs, strict=True)
            if record is not None
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "give files that autoprune bench, --save_ppl or --save_zeroshot wrote"
        raise DataError(f"{file}: holds no results that can be read ({error}); {remedy}") from error


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> str | None:
    """Says in words where two records differ; None if they are equal."""
    for key in sorted({*before, *now}):
        where = f"{path}.{key}" if path else key
        old, new = _by_number(before.get(key)), _by_number(now.get(key))
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := first_difference(old, new, where):
                return inner
        elif old != new:
            return f"{where} was {old!r} and is {new!r}"
    return None


def _by_number(value: Any) -> Any:
    """A list of records, such as that of a recipe's steps, as records by their place, counted from 1."""
    records = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return {str(i): item for i, item in enumerate(value, start=1)} if records else value
