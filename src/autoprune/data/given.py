"""Texts and token ids that were handed over in Python: what they are, and what the record calls them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoprune.data.fields import document_field, is_turn, kind_of_value, why_not
from autoprune.data.hub import kind_of_feature
from autoprune.data.ids import is_mask, mask_in, whole_numbers
from autoprune.errors import DataError
from autoprune.recipe.checks import short

if TYPE_CHECKING:
    from torch import Tensor

IDS = "input_ids"
TAKEN = (
    "a path or name, a list of strings, a datasets.Dataset, a tensor or list of token ids, or a DataLoader whose"
    f" batches have `{IDS}`"
)


@dataclass(frozen=True)
class Given:
    """Documents, texts or conversations; or token ids, int64, ``[tokens]`` of one running text or
    ``[samples, seqlen]``.

    ``title`` says what was handed over, such as "list of 12 strings"; ``sha256`` is of all that it holds.
    """

    title: str
    sha256: str
    documents: Sequence[Any] | None = None
    ids: Tensor | None = None
    field: str | None = None  # of a dataset or of records: where the texts were

    @property
    def kind(self) -> str:
        """The kind of a ``Source`` that has it: strings, stream (one running text in ids), or tokens (windows)."""
        if self.ids is None:
            return "strings"
        return "stream" if self.ids.dim() == 1 else "tokens"


def given(value: Any, flag: str, limit: int | None = None) -> Given:
    """What a value from Python holds; ``limit``: rows of token ids after which no more are taken.

    Raises: DataError naming its type and the remedy if it is none of ``TAKEN``, or empty, or has padded or uneven
    rows.
    """
    name = type(value).__name__
    home = type(value).__module__.partition(".")[0]
    if home == "datasets" and hasattr(value, "column_names") and hasattr(value, "features"):
        return _dataset(value, name, flag)
    if home == "datasets" and isinstance(value, Mapping):
        raise DataError(
            f"{flag}: a {name} holds the splits {', '.join(value)}; give one, such as data[{next(iter(value))!r}]"
        )
    if isinstance(value, Mapping) and IDS in value:
        return _rows([value], name, flag, limit)
    if isinstance(value, (set, frozenset)):
        raise DataError(f"{flag}: a {name} has another order in every process; give a list, such as sorted(texts)")
    if (rows := _table_rows(value, home)) is not None:
        return _listed(rows, name, flag, limit)
    value = _iterable(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if getattr(value.dtype, "kind", "i") in "OUT":  # strings of numpy's
            return _listed(value.tolist(), name, flag, limit)
        return _ids(whole_numbers(value, flag), name, flag)
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        raise DataError(f"{flag}: {short(value)} is of type {name}; give {TAKEN}")
    _refuse_mask(value, name, flag)
    return _listed(value, name, flag, limit)


def _iterable(value: Any) -> Any:
    """What has items, and no iterator or shape, as a list of them; anything else as it is."""
    if getattr(value, "is_nested", False):  # torch's
        return list(value.unbind())
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, Iterable):
        return [value[i] for i in range(len(value))]  # a torch Dataset, of which many have no iterator
    return value


def _refuse_mask(value: Any, name: str, flag: str) -> None:
    """Raises: DataError for one batch, ids and their mask, which would be taken for two batches."""
    few = isinstance(value, (list, tuple)) and 1 < len(value) < 4 and len(getattr(value[0], "shape", ())) > 0
    if few and not is_mask(value[0]) and mask_in(value) is not None:
        raise DataError(
            f"{flag}: the {name} holds token ids and something of only 0 and 1 beside them, as an attention mask is;"
            " give the token ids alone, cut to one length without padding, or, if both are ids, stacked to one tensor"
        )


def _table_rows(value: Any, home: str) -> list[Any] | None:
    """The records of a table, or the values of its column, of the libraries that have such; None of anything else."""
    if home == "pandas":
        return value.to_dict("records") if hasattr(value, "columns") else value.tolist()
    ways = {"polars": "to_dicts" if hasattr(value, "columns") else "to_list", "pyarrow": "to_pylist"}
    return getattr(value, ways[home])() if home in ways else None


def _listed(value: Iterable[Any], name: str, flag: str, limit: int | None) -> Given:
    """A list or another iterable, judged by its first item."""
    items = iter(value)
    try:
        first = next(items)
    except StopIteration:
        once = " (an iterator gives them once)" if items is value else ""
        raise DataError(f"{flag}: a {name} without any items{once}; give {TAKEN}") from None
    everything = itertools.chain([first], items)
    if isinstance(first, str):
        return _strings(value if isinstance(value, Sequence) else list(everything), name, flag)
    if isinstance(first, (list, tuple)) and first and isinstance(first[0], Mapping) and is_turn(first[0]):
        return _conversations(list(everything), name, flag)
    if isinstance(first, Mapping) and is_turn(first):
        raise DataError(f"{flag}: a {name} of turns is one conversation; give a list of conversations: [turns]")
    if isinstance(first, Mapping) and IDS not in first:
        return _records(list(everything), name, flag)
    if _is_number(first):
        return _ids(whole_numbers(list(everything), flag), name, flag)
    if isinstance(first, Mapping) or hasattr(first, "shape") or _whole(first) or _is_pack(first):
        return _rows(everything, name, flag, limit)
    raise DataError(
        f"{flag}: a {name} whose first item is of type {type(first).__name__} ({short(first)}); give {TAKEN}"
    )


def _whole(item: Any) -> bool:
    return isinstance(item, Sequence) and not isinstance(item, bytes) and bool(item) and _is_number(item[0])


def _is_pack(item: Any) -> bool:
    """Whether it is a batch as a TensorDataset's loader and the papers' programs hand it out: a tuple, or a list, of
    tensors of which the first holds the token ids. In a list these have two dimensions: a list of rows is no batch.
    """
    if not isinstance(item, (list, tuple)) or not item:
        return False
    return len(getattr(item[0], "shape", ())) >= (1 if isinstance(item, tuple) else 2)


def _is_number(item: Any) -> bool:
    """Whether it is one number: Python's, numpy's, or a tensor without dimensions."""
    return not isinstance(item, bool) and (isinstance(item, int) or getattr(item, "shape", None) == ())


def _strings(texts: Sequence[Any], name: str, flag: str, field: str | None = None, title: str = "") -> Given:
    digest = hashlib.sha256()
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{flag}: item {i} of the {name} is of type {type(text).__name__} and no string ({short(text)});"
                " leave such items out"
            )
        raw = text.encode("utf-8", errors="surrogatepass")
        digest.update(f"{len(raw)}:".encode() + raw)
    title = title or f"{name} of {len(texts)} string{'s' if len(texts) != 1 else ''}"
    return Given(title, digest.hexdigest(), documents=texts, field=field)


def _conversations(talks: Sequence[Any], name: str, flag: str, field: str | None = None) -> Given:
    """Conversations, each a list of turns; the tokenizer's chat template renders them (``data/chat.py``)."""
    digest = hashlib.sha256()
    for i, talk in enumerate(talks):
        if not isinstance(talk, (list, tuple)):
            raise DataError(f"{flag}: item {i} of the {name} is no conversation ({short(talk)}); leave such items out")
        raw = json.dumps(talk, sort_keys=True, default=str).encode()
        digest.update(f"{len(raw)}:".encode() + raw)
    return Given(f"{name} of {len(talks)} conversations", digest.hexdigest(), documents=talks, field=field)


def _records(records: list[Any], name: str, flag: str) -> Given:
    keys = {str(key): key for key in records[0]}  # a table's columns may be numbered
    kinds = {word: kind_of_value(records[0][key]) for word, key in keys.items()}
    field = document_field(kinds)
    if field is None:
        raise DataError(f"{flag}: a {name} of records with the fields {', '.join(kinds)}: {why_not(kinds, 'field')}")
    texts = [record.get(keys[field]) if isinstance(record, Mapping) else record for record in records]
    if kinds[field] == "conversation":
        return _conversations(texts, name, flag, field)
    return _strings(texts, name, flag, field, f"{name} of {len(texts)} records, field {field}")


def _dataset(data: Any, name: str, flag: str) -> Given:
    """A ``datasets.Dataset``: its token ids if it has any, else the column that is plainly the text."""
    if not hasattr(data, "__len__"):
        raise DataError(
            f"{flag}: a {name} is read as a stream, whose end nobody knows; give some of it: list(data.take(1000))"
        )
    if not len(data):
        raise DataError(f"{flag}: a {name} without any rows; give {TAKEN}")
    if data.format["type"] == "custom":  # a transform makes its rows when they are asked for
        return _listed(data, name, flag, None)
    data = data.with_format(None)
    if IDS in data.column_names:
        columns = [IDS, *(["attention_mask"] if "attention_mask" in data.column_names else [])]
        return _rows(data.select_columns(columns), name, flag, None)
    kinds = {column: kind_of_feature(feature) for column, feature in data.features.items()}
    column = document_field(kinds)
    if column is None:
        raise DataError(
            f"{flag}: a {name} with the columns {', '.join(kinds)}: {why_not(kinds)}, or give the column itself, such"
            f" as data[{next(iter(kinds), 'text')!r}]"
        )
    if kinds[column] == "conversation":
        return _conversations(data[column], name, flag, column)
    return _strings(data[column], name, flag, column, f"{name} of {len(data)} rows, column {column}")


def _rows(items: Iterable[Any], name: str, flag: str, limit: int | None) -> Given:
    """Rows of token ids, one or several in an item. Raises: DataError for rows of several lengths."""
    import torch

    parts, count = list[Any](), 0
    for item in items:
        part = _part(item, len(parts), name, flag)
        if parts and part.shape[1] != parts[0].shape[1]:
            raise DataError(
                f"{flag}: item {len(parts)} of the {name} has rows of {part.shape[1]} token ids, and those before have"
                f" {parts[0].shape[1]}; cut all rows to one length, or give the texts, from which windows are cut"
            )
        parts.append(part)
        count += len(part)
        if limit is not None and count >= limit:
            break
    return _ids(torch.cat(parts), name, flag)


def _part(item: Any, number: int, name: str, flag: str) -> Tensor:
    """The rows of one item. Raises: DataError if one is padded, for padding is nothing to calibrate on."""
    import torch

    hidden = item.get("attention_mask") if isinstance(item, Mapping) else None
    if _is_pack(item):
        item, hidden = item[0], mask_in(item)
    if isinstance(item, Mapping) and IDS not in item:
        raise DataError(f"{flag}: item {number} of the {name} has no `{IDS}`, only {', '.join(map(str, item))}")
    found = whole_numbers(item[IDS] if isinstance(item, Mapping) else item, flag)
    if found.dim() not in (1, 2) or 0 in found.shape:
        raise DataError(
            f"{flag}: item {number} of the {name} has token ids of shape {list(found.shape)}; it must be [seqlen] or"
            " [samples, seqlen], with at least one of each"
        )
    if hidden is not None and (padded := int((torch.as_tensor(hidden) == 0).sum())):
        raise DataError(
            f"{flag}: item {number} of the {name} is padded ({padded} of {found.numel()} places, by its"
            " attention_mask), and padding is nothing to measure; cut the rows to one length without padding,"
            " or give the texts"
        )
    return found if found.dim() == 2 else found[None]


def _ids(ids: Tensor, name: str, flag: str) -> Given:
    if ids.dim() not in (1, 2) or 0 in ids.shape:
        shape = list(ids.shape)
        raise DataError(f"{flag}: token ids of shape {shape}; give [tokens], one long text, or [samples, seqlen]")
    ids = ids.contiguous()
    digest = hashlib.sha256(f"{list(ids.shape)}:".encode())
    digest.update(ids.numpy().astype("<i8", copy=False).tobytes())
    size = " x ".join(map(str, ids.shape))
    return Given(f"{name} of {size} token ids", digest.hexdigest(), ids=ids)
