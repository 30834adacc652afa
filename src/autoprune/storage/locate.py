"""From the user's word for a model to a directory on disk."""

from __future__ import annotations

import errno
import functools
import glob
from collections.abc import Sequence
from pathlib import Path

from autoprune.errors import ModelError
from autoprune.storage.weight_files import files_wanted

DEMO = Path(__file__).resolve().parent.parent / "demo"  # the model and the texts that the project ships
BESIDE = (".json", ".model", ".txt", ".jinja", ".py", ".tiktoken")  # endings of a model's small files
TEMPLATES = "additional_chat_templates/"
HUB_TIMEOUT = 10.0  # seconds
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


def locate(word: str, cache_dir: str | None = None, revision: str | None = None) -> Path:
    """The directory of a model, or its GGUF file: ``demo``, a local path, or a hub id, fetched into the cache.

    ``revision``: a branch, tag or commit on the hub.
    Raises: ModelError saying what was looked for and what to do.
    """
    if not word:
        raise ModelError("--model is missing: give a hub id, a local directory, or `demo`")
    path = DEMO if word == "demo" else Path(word).expanduser()
    if revision is not None and path.exists():
        raise ModelError(
            f"--revision {revision}: only models on the hub have revisions, and {word} is a directory or file of this"
            " machine; leave --revision out"
        )
    if word == "demo":
        return DEMO
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise ModelError(f"--model {word}: this is a file; give the directory that holds config.json and the weights")
    if word.startswith((".", "/", "~")) or word.count("/") > 1:
        raise ModelError(f"--model {word}: there is no such directory")
    return _download(word, cache_dir, revision)


def _download(repo: str, cache_dir: str | None, revision: str | None) -> Path:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    advice = f"--model {repo}: there is no such local directory, and the hub"
    try:
        return _fetch(repo, cache_dir, revision)
    except GatedRepoError as error:
        raise ModelError(
            f"{advice} asks for permission: accept the model's terms on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{advice} knows no model of that name; check the spelling, or log in with `hf auth login` if it is"
            " private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"--revision {revision}: the hub has {repo}, and no branch, tag or commit of that name in it; check the"
            " spelling on the model's page"
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"{advice} can't have a model of that name; give an id such as huggyllama/llama-7b"
        ) from error
    except ModelError:
        raise
    except (
        Exception
    ) as error:  # LocalEntryNotFoundError, or one of the HTTP library's own, which changes between its versions
        if isinstance(error, OSError) and error.errno in UNUSABLE:
            where = error.filename or cache_dir or "the cache folder"
            raise ModelError(
                f"--model {repo}: can't write to {where} ({error.strerror}); free some space there, mend its"
                " permissions, or name another folder by --cache_dir or HF_HOME"
            ) from error
        if (found := _cached(repo, cache_dir, revision)) is not None:
            return found
        where = f"can't be reached ({type(error).__name__})"
        if revision is not None and _cached(repo, cache_dir, None) is not None:
            advice = f"--revision {revision}: {repo} was fetched before, but not this revision of it, and the hub"
            raise ModelError(f"{advice} {where}; leave --revision out, or repeat this with a network") from error
        raise ModelError(
            f"{advice} {where}; download the model elsewhere and give its directory, or use the model shipped here:"
            " --model demo"
        ) from error


def _fetch(repo: str, cache_dir: str | None, revision: str | None) -> Path:
    """Fetches what the model needs and nothing else: copies of the weights for other programs stay where they are."""
    from huggingface_hub import HfApi, snapshot_download

    there = [
        file.rfilename for file in HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT).siblings or ()
    ]
    small = [name for name in there if _is_small(name)]
    fetch = functools.partial(snapshot_download, repo, revision=revision, cache_dir=cache_dir)
    weights = [name for name in files_wanted(Path(fetch(allow_patterns=_exactly(small))), there) if name in there]
    return Path(fetch(allow_patterns=_exactly([*small, *weights])))


def _is_small(name: str) -> bool:
    if name.endswith(".py") or (name.startswith(TEMPLATES) and name.endswith(".jinja")):
        return True  # a model's own code may lie in folders
    return "/" not in name and name.endswith(BESIDE)


def _exactly(names: Sequence[str]) -> list[str]:
    """Patterns for these names alone."""
    return [glob.escape(name) for name in names]


def _cached(repo: str, cache_dir: str | None, revision: str | None) -> Path | None:
    """What earlier downloads have left of a model; whether that is enough, its reader will see."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(found).parent if isinstance(found, str) else None
