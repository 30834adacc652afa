"""Where a result comes to lie: what may be replaced there, and how it is put in place without ever leaving a mixture
of two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from autoprune.errors import OutputError

MANIFEST = "autoprune.json"
STATE = "state.json"  # what an unfinished run depends on; see journal.py
TEMPLATES = (  # the one folder that belongs to a model: transformers keeps chat templates there
    "additional_chat_templates"
)
INSIDE = ".autoprune-partial"  # the workplace's name where it has to lie in the target itself


def check_target(target: Path, overwrite: bool) -> None:
    """Raises: OutputError if ``target`` is a file, or holds files that may not be replaced."""
    if target.is_file():
        raise OutputError(f"--save_model {target}: a file of that name exists; choose another directory")
    if not target.is_dir() or not entries(target) or _half_moved(target):
        return
    if not overwrite:
        raise OutputError(
            f"--save_model {target}: the directory is not empty; choose another, or replace an earlier autoprune"
            " result with --overwrite"
        )
    if not (target / MANIFEST).is_file():
        raise OutputError(
            f"--save_model {target}: the directory is not empty and was not written by autoprune (no {MANIFEST}), so"
            " --overwrite leaves it alone; choose another"
        )
    written_files(target)


def check_foreign(target: Path, names: Sequence[str]) -> None:
    """Raises: OutputError if the result would replace a file in ``target`` that autoprune did not write."""
    if not target.is_dir() or not entries(target) or _half_moved(target):
        return
    ours = {path.relative_to(target).as_posix() for path in written_files(target)}
    if foreign := [name for name in sorted(names) if name not in ours and (target / name).exists()]:
        raise OutputError(
            f"--save_model {target}: {foreign[0]} there was not written by autoprune, so --overwrite leaves it alone;"
            " move it away"
        )


def written_files(directory: Path) -> list[Path]:
    """The files that autoprune wrote into a result directory, by its own manifest; others are not ours to touch.

    Raises: OutputError if the manifest can't be read.
    """
    return [directory / name for name in [*listed(directory), MANIFEST] if (directory / name).is_file()]


def delete_result(directory: Path) -> None:
    """Removes what autoprune wrote into a directory, and the directory if nothing else is in it."""
    _unlink(directory, written_files(directory))
    if not any(directory.iterdir()):
        directory.rmdir()


def _unlink(directory: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
    _drop_templates(directory)


def _drop_templates(directory: Path) -> None:
    """The folder of chat templates goes when nothing is in it any more."""
    if (directory / TEMPLATES).is_dir() and not any((directory / TEMPLATES).iterdir()):
        (directory / TEMPLATES).rmdir()


def is_temporary(directory: Path) -> bool:
    """Whether a result was made by a run that was to remove it in the end (--delete).

    Raises: OutputError if its manifest can't be read.
    """
    return bool(_read_manifest(directory).get("delete"))


def keep_result(directory: Path) -> None:
    """A result that was to be removed in the end stays after all: its manifest becomes what it would have been from
    the start.
    """
    found = _read_manifest(directory)
    if found.pop("delete", None):
        draft = directory / f"{MANIFEST}.writing"
        try:
            draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            sync(draft)
            draft.replace(directory / MANIFEST)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise OutputError(
                f"{directory / MANIFEST} still says that the result is to be removed, for it can't be written"
                f" ({error}); free some space there and repeat the command with --resume"
            ) from error


def put_in_place(work: Path, target: Path, names: Sequence[str], overwrite: bool) -> None:
    if work.parent == target:
        _move_out(work, target, names, overwrite)
        return
    old = target.parent / f".{target.name}.autoprune-old"
    if target.is_dir() and not entries(target):
        target.rmdir()
    if target.exists() and not old.exists():
        check_target(target, overwrite)
        check_foreign(target, names)
        target.rename(old)  # two renames: whoever looks sees the old result, none, or the new one, and no mixture
    if not target.exists():
        work.rename(target)
    sync(target.parent)
    if old.is_dir():
        settle(old, target)


def settle(old: Path, target: Path) -> None:
    """The files in an earlier result's directory that autoprune did not write move to the new one; the others go."""
    ours = (
        written_files(old) if (old / MANIFEST).is_file() else []
    )  # the manifest, which says which are ours, is the last of them
    for path in sorted([*old.iterdir(), *(old / TEMPLATES).glob("*")]):
        if path not in ours and not (path.name == TEMPLATES and path.is_dir()):
            (target / path.relative_to(old)).parent.mkdir(exist_ok=True)
            path.rename(target / path.relative_to(old))
    _unlink(old, ours)
    old.rmdir()
    sync(target)


def _move_out(work: Path, target: Path, names: Sequence[str], overwrite: bool) -> None:
    """File by file, where the directory itself can't be replaced; the old result goes first, so that none is half the
    other's.
    """
    left = [name for name in names if (work / name).exists()]  # of a stop in the middle
    if len(left) == len(names):
        check_target(target, overwrite)
        check_foreign(target, left)
        _unlink(
            target, written_files(target) if (target / MANIFEST).is_file() else []
        )  # the manifest is the last of them
    for name in sorted(left, key=lambda n: n == MANIFEST):
        (target / name).parent.mkdir(exist_ok=True)
        (work / name).replace(target / name)
    _drop_templates(work)
    work.rmdir()
    sync(target)


def entries(directory: Path) -> list[Path]:
    """What lies in a directory besides a workplace of ours."""
    return [path for path in directory.iterdir() if path.name != INSIDE]


def _half_moved(target: Path) -> bool:
    """Whether a whole result lies in a workplace in the target, or partly there and partly moved out of it already."""
    work = target / INSIDE
    if not (work / MANIFEST).is_file() or (work / STATE).is_file() or (target / MANIFEST).is_file():
        return False
    return all((work / name).exists() != (target / name).exists() for name in listed(work))


def listed(directory: Path) -> list[str]:
    """Names in a manifest, but for those that would lead out of the directory."""
    try:
        names = [PurePath(name) for name in _read_manifest(directory)["written"]]
    except (KeyError, TypeError) as error:
        raise OutputError(
            f"{directory / MANIFEST} does not say what autoprune wrote there ({error}); choose another directory"
        ) from error
    return [str(name) for name in names if str(name) in (name.name, f"{TEMPLATES}/{name.name}")]


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"{directory / MANIFEST} does not say what autoprune wrote there ({error}); choose another directory"
        ) from error


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
