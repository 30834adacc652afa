"""Documents of datasets on the hub, or in a local mirror that is laid out like the hub.

``AUTOPRUNE_DATASETS_MIRROR=DIR`` makes ``DIR/owner/name`` stand for the hub dataset ``owner/name``: the files lie in
it under the names that they have on the hub. Nothing is fetched then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoprune.data.fields import Kind, document_field, is_turn, why_not
from autoprune.data.sources import Source
from autoprune.errors import DataError

MIRROR_VARIABLE = "AUTOPRUNE_DATASETS_MIRROR"
Purpose = Literal["calibration", "evaluation"]
SPLITS: dict[str, tuple[str, ...]] = {"calibration": ("train",), "evaluation": ("test", "validation")}
HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class HubSet:
    """Where a dataset lies on the hub.

    ``data_files`` narrows it to one file per purpose, ``first`` to its first documents.
    """

    repo: str
    config: str | None = None
    revision: str | None = None
    data_files: Mapping[str, dict[str, str]] | None = None
    first: Mapping[str, int] | None = None


NAMED_SETS = {
    "c4": HubSet(
        "allenai/c4",
        data_files={
            "calibration": {"train": "en/c4-train.00000-of-01024.json.gz"},
            "evaluation": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
        },
        first={"evaluation": 1100},
    ),
    "wikitext2": HubSet("Salesforce/wikitext", config="wikitext-2-raw-v1"),
    # The dataset itself is a loading script, which datasets >= 4 doesn't run; this branch holds what it produced.
    "ptb": HubSet("ptb-text-only/ptb_text_only", revision="refs/convert/parquet"),
}


@dataclass(frozen=True)
class _Place:
    """What ``load_dataset`` is asked for; ``unreachable`` says why the hub doesn't answer, if it doesn't."""

    path: str
    name: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    unreachable: str | None = None
    commit: str | None = None


def read_hub(source: Source, purpose: Purpose, cache_dir: str | None) -> tuple[Sequence[Any], dict[str, Any]]:
    """The documents of a named set or hub dataset (texts or conversations) as a lazy column, and their origin.

    Raises: DataError when it can't be fetched, has no fitting split, or no column that is plainly the text.
    """
    wanted = NAMED_SETS.get(source.kind) or HubSet(source.repo or "", source.config)
    mirror = os.environ.get(MIRROR_VARIABLE)
    place = _in_mirror(source, wanted, Path(mirror).expanduser()) if mirror else _on_hub(source, wanted, purpose)
    splits = _load(source, wanted, place, purpose, cache_dir)
    split = next((name for name in SPLITS[purpose] if name in splits), None)
    if split is None:
        raise DataError(
            f"{source.label}: {purpose} needs the split {' or '.join(SPLITS[purpose])}, but {wanted.repo} has"
            f" {', '.join(splits)}; {_alternative(source)}"
        )
    dataset = splits[split]
    column = _text_column(source, wanted, dataset)
    if wanted.first and purpose in wanted.first:
        dataset = dataset.select(range(min(wanted.first[purpose], len(dataset))))
    origin = {
        "dataset": wanted.repo,
        "config": wanted.config,
        "data_files": wanted.data_files[purpose][split] if wanted.data_files else None,
        "split": split,
        "field": column,
        "revision": wanted.revision,
        "commit": None if mirror else place.commit or _commit(dataset),
        "mirror": bool(mirror),
    }
    return dataset[column], origin


def _in_mirror(source: Source, wanted: HubSet, mirror: Path) -> _Place:
    """The folder of a dataset inside the mirror."""
    where = f"{MIRROR_VARIABLE}={mirror}"
    folder = mirror / wanted.repo
    if not folder.is_dir():
        raise DataError(
            f"{source.label}: {where} has no folder {wanted.repo}; copy the dataset there in the hub's layout, or"
            " unset the variable"
        )
    if wanted.config is None or (folder / "README.md").is_file():
        return _Place(str(folder), name=wanted.config)
    # Without the dataset card `datasets` knows no configurations: it would ignore the name and mix the files of all of
    # them.
    if not (folder / wanted.config).is_dir():
        raise DataError(
            f"{source.label}: {where} has neither {wanted.repo}/README.md nor the folder"
            f" {wanted.repo}/{wanted.config}; add one of them"
        )
    return _Place(str(folder), data_dir=wanted.config)


def _on_hub(source: Source, wanted: HubSet, purpose: Purpose) -> _Place:
    """Asks the hub once, with a timeout, for the dataset; `datasets` by itself retries for half a minute per
    dataset.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if datasets.config.HF_HUB_OFFLINE:
        return _in_cache(wanted, purpose, "offline mode is set by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE")
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(
            wanted.repo, revision=wanted.revision, timeout=HUB_TIMEOUT_SECONDS
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(
            f"{source.label}: neither an existing file nor a hub dataset that you may read ({type(error).__name__}); "
            f"check the name, log in if it is private or gated, or {_alternative(source)}"
        ) from error
    except (
        Exception
    ) as error:  # the HTTP library under huggingface_hub differs between its versions, and so do its errors
        return _in_cache(wanted, purpose, _short(error))
    return _Place(wanted.repo, name=wanted.config, revision=wanted.revision)


def _in_cache(wanted: HubSet, purpose: Purpose, unreachable: str) -> _Place:
    """What an earlier run left on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if wanted.data_files:
        # Without the hub, `datasets` doesn't find in its cache what it once loaded with data_files; the downloaded
        # file is still there.
        (file,) = wanted.data_files[purpose].values()
        found = try_to_load_from_cache(wanted.repo, file, repo_type="dataset", revision=wanted.revision)
        if isinstance(found, str):
            snapshot = Path(found).parents[file.count("/")]
            return _Place(str(snapshot), unreachable=unreachable, commit=snapshot.name)
    return _Place(wanted.repo, name=wanted.config, revision=wanted.revision, unreachable=unreachable)


def _load(source: Source, wanted: HubSet, place: _Place, purpose: Purpose, cache_dir: str | None) -> dict[str, Any]:
    """All splits that the dataset has, by name."""
    import datasets

    try:
        with _offline(place.unreachable is not None):
            loaded = datasets.load_dataset(
                place.path,
                name=place.name,
                data_dir=place.data_dir,
                data_files=wanted.data_files[purpose] if wanted.data_files else None,
                revision=place.revision,
                cache_dir=cache_dir,
                # One shard of a split is asked for on purpose, and the card promises them all: the default check may
                # refuse it.
                verification_mode="no_checks" if wanted.data_files else None,
            )
    except (
        Exception
    ) as error:  # files, network and parsers fail with errors of many libraries; all mean the same to the user
        raise DataError(_load_message(source, wanted, place, error)) from error
    return dict(loaded)


def _load_message(source: Source, wanted: HubSet, place: _Place, error: Exception) -> str:
    """What went wrong, and what to do instead."""
    if place.unreachable is not None:
        local = "it is not in the datasets cache" + (
            ", nor is there a local file of this name" if source.kind == "hub" else ""
        )
        problem = f"dataset {wanted.repo} could not be fetched ({place.unreachable}) and {local}"
    elif place.path != wanted.repo:
        problem = f"the copy of {wanted.repo} in {MIRROR_VARIABLE} could not be read ({_short(error)})"
    else:
        problem = f"dataset {wanted.repo} could not be fetched ({_short(error)})"
    if source.kind == "hub" and isinstance(error, ValueError):
        problem += f"; a configuration is chosen with {wanted.repo}:CONFIG"
    return f"{source.label}: {problem}; {_alternative(source)}"


def _alternative(source: Source) -> str:
    return (
        f"use a local file instead ({source.flag} FILE.txt), or set {MIRROR_VARIABLE}=DIR to a copy in the hub's"
        " layout"
    )


def _short(error: Exception) -> str:
    message = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {message[:300]}{'...' if len(message) > 300 else ''}"
        if message
        else type(error).__name__
    )


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Lets `datasets` look in its cache only, since the hub has just been found not to answer."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _text_column(source: Source, wanted: HubSet, dataset: Any) -> str:
    """The column that holds the documents, without rows that hold none."""
    kinds = {name: _dtype(feature) for name, feature in dataset.features.items()}
    judged = {name: kind_of_feature(feature) for name, feature in dataset.features.items()}
    column = document_field(judged)
    if column is None:
        columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{source.label}: {wanted.repo} has the columns {columns}: {why_not(judged)}, in a file of your own"
            f" ({source.flag} FILE.jsonl)"
        )
    if missing := dataset.data.column(column).null_count:
        raise DataError(
            f"{source.label}: column `{column}` of {wanted.repo} holds no text in {missing} rows; "
            f"write the others to a file ({source.flag} FILE.jsonl)"
        )
    return column


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def kind_of_feature(feature: Any) -> Kind:
    """What a column of a dataset holds, by its feature."""
    if _dtype(feature) in ("string", "large_string", "string_view"):
        return "text"
    inner = feature if isinstance(feature, (list, dict)) else getattr(feature, "feature", None)
    turn = inner[0] if isinstance(inner, list) and inner else inner
    if isinstance(turn, dict) and is_turn(turn):
        return "conversation"
    return "nested" if inner is not None else "other"


def _commit(dataset: Any) -> str | None:
    """The commit that was read, which `datasets` keeps as the name of the folder in its cache; None if it isn't
    there.
    """
    folders = {Path(entry["filename"]).parent.name for entry in dataset.cache_files}
    name = folders.pop() if len(folders) == 1 else ""
    return name if len(name) == 40 and set(name) <= set("0123456789abcdef") else None
