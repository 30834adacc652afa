"""A result directory made beside its target, file by file, and put in its place when it is whole: never a mixture of
two results.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from autoprune.errors import OutputError
from autoprune.storage.checkpoint import Checkpoint
from autoprune.storage.files import DRAFT, LONGEST_NAME, draft, file_sha256, sync, writing_to
from autoprune.storage.manifest import MANIFEST, TEMPLATES, Manifest, drop_templates
from autoprune.storage.weight_files import INDEX, SINGLE

LOCK = "in-use.lock"
JOURNAL = "journal-"  # files that only serve to resume start with this
STATE = "state.json"  # what an unfinished run depends on; see journal.py
INSIDE = ".autoprune-partial"  # the workplace's name where it has to lie in the target itself


class Workplace:
    """A hidden neighbour of ``target`` in which the result is made: ``target`` stays as it was until all is there.

    A target that can't be replaced, because a disk is mounted there or someone works in it, is its own neighbour: the
    workplace lies in it.
    """

    def __init__(self, target: Path, *, overwrite: bool, resume: bool = False) -> None:
        self.target, self._overwrite, self._resume = target, overwrite, resume
        self._place = target.resolve()  # through links, so that the result lands where the user's word leads
        fixed = os.path.ismount(self._place) or self._place == Path.cwd()
        self.path = self._place / INSIDE if fixed else _neighbour(self._place, "partial")
        self._lock = FileLock(self.path / LOCK, timeout=0)

    def tidy(self) -> None:
        """Ends what a run that was stopped right after its result was in place has left to clear away."""
        old = _neighbour(self._place, "old")
        if old.is_dir() and (self._place / MANIFEST).is_file():
            _settle(old, self._place)
        if self.path.parent == self._place and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def begin(self, need: int, names: Sequence[str] = ()) -> None:
        """Takes the place; ``need`` is the size of the result in bytes, ``names`` are files that it will surely have.

        Raises: OutputError if the target is in the way, the disk is too small, or another run is at work.
        """
        check_target(self.target, self._overwrite)
        if not (self._resume and self.whole):
            check_foreign(self.target, [*names, "README.md", INDEX, SINGLE])
        with writing_to(self.target):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"{self.target}: another autoprune run is writing there; wait for it or choose another directory"
            ) from error
        self._clear()
        there = sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())
        free = shutil.disk_usage(self.path).free + there
        if free < need * 1.01:
            self.leave() if self.unfinished else self.abandon()
            raise OutputError(
                f"{self.target}: the result needs {need / 2**20:,.1f} MiB, but only {free / 2**20:,.1f}"
                " MiB are free on that disk"
            )

    def _clear(self) -> None:
        """Removes what an earlier run left behind: all of it, or when it is to be resumed only drafts."""
        if self.unfinished and not self._resume and not self._overwrite:
            self._lock.release()
            raise OutputError(
                f"{self.target}: an unfinished run lies beside it (in {self.path}); --resume goes on with"
                " it, --overwrite starts again"
            )
        for path in self.path.iterdir():
            if path.is_dir():
                if not (self._resume and self.whole):  # else it holds a part of the result
                    shutil.rmtree(path)
            elif path.name != LOCK and (not self._resume or path.name.endswith(DRAFT)):
                path.unlink()

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to go on with: a run's state, or a result that was only not put in place."""
        return (self.path / STATE).is_file() or (self.path / MANIFEST).is_file()

    @property
    def whole(self) -> bool:
        """Whether all was made, and the run stopped only while it put that in place."""
        return (self.path / MANIFEST).is_file() and not (self.path / STATE).is_file()

    @contextmanager
    def _draft(self, name: str) -> Iterator[Path]:
        with writing_to(self.target), draft(self.path / name) as made:
            yield made

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Writes one safetensors file, whole or not at all."""
        with self._draft(name) as made:
            save_file(tensors, made, metadata={"format": "pt"})

    def copy(self, name: str, checkpoint: Checkpoint, tensors: Sequence[str]) -> None:
        """Writes one safetensors file of tensors as another checkpoint holds them, whole or not at all."""
        with self._draft(name) as made:
            checkpoint.copy(tensors, made)

    def made(self) -> list[dict[str, object]]:
        """Name, size and SHA-256 of every file made so far but for the manifest, in order."""
        paths = [(name, self.path / name) for name in self.names() if name != MANIFEST]
        return [{"name": n, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for n, path in paths]

    def copy_file(self, name: str, source: Path) -> None:
        """Copies a file byte for byte, whole or not at all."""
        with self._draft(name) as made:
            shutil.copyfile(source, made)

    def write(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all."""
        with self._draft(name) as made:
            made.write_text(text, encoding="utf-8")

    def names(self) -> list[str]:
        """The files made so far."""
        files = [
            path
            for path in self.path.iterdir()
            if path.is_file() and path.name not in (LOCK, STATE) and not path.name.startswith(JOURNAL)
        ]
        return sorted(path.relative_to(self.path).as_posix() for path in [*files, *(self.path / TEMPLATES).glob("*")])

    def publish(self) -> list[Path]:
        """Puts everything in place, in one step where the file system allows. Returns the files of the result.

        After a stop in the middle of it, the same call goes on with what is left.
        """
        names = [*Manifest.read(self.path).written, MANIFEST] if (self.path / MANIFEST).is_file() else self.names()
        with writing_to(self.target):
            (self.path / LOCK).unlink(missing_ok=True)
            (self.path / LOCK).touch()
            usual = (
                (self.path / LOCK).stat().st_mode
            )  # as the user's umask wants it: safetensors makes files that only their owner can read
            for name in filter(lambda name: (self.path / name).exists(), names):
                (self.path / name).chmod(usual)
                sync(self.path / name)
            self._forget_journal()
            (self.path / LOCK).unlink()
            _put_in_place(self.path, self._place, names, self._overwrite)
        self._lock.release()
        return [self.target / name for name in names]

    def _forget_journal(self) -> None:
        (self.path / STATE).unlink(
            missing_ok=True
        )  # first, for without the rest it would tell of a run that has finished nothing
        for path in self.path.glob(f"{JOURNAL}*"):
            path.unlink()

    def leave(self) -> None:
        """Stops for now: what was made stays, to be resumed."""
        self._lock.release()

    def abandon(self) -> None:
        """Gives up: removes what was made so far."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def _neighbour(place: Path, what: str) -> Path:
    """A hidden directory beside ``place``; its name tells whose it is, as far as names may be as long."""
    name = f".{place.name}.autoprune-{what}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:32]}.autoprune-{what}"
    return place.parent / name


def check_target(target: Path, overwrite: bool) -> None:
    """Raises: OutputError if ``target`` is no directory, such as a file, or holds files that may not be replaced."""
    # A link to a result that is being replaced leads nowhere between two renames.
    halfway = target.is_symlink() and any(_neighbour(target.resolve(), what).is_dir() for what in ("partial", "old"))
    if os.path.lexists(target) and not target.is_dir() and not (halfway and not target.exists()):
        kind = "file" if target.is_file() else "link to nothing" if target.is_symlink() else "device, pipe or socket"
        raise OutputError(f"{target}: a {kind} of that name exists; choose another directory")
    if not target.is_dir() or not _entries(target) or _half_moved(target):
        return
    if not overwrite:
        raise OutputError(
            f"{target}: the directory is not empty; choose another, or replace an earlier autoprune"
            " result with --overwrite"
        )
    if not (target / MANIFEST).is_file():
        raise OutputError(
            f"{target}: the directory is not empty and was not written by autoprune (no {MANIFEST}), so"
            " --overwrite leaves it alone; choose another"
        )
    Manifest.read(target)


def check_foreign(target: Path, names: Sequence[str]) -> None:
    """Raises: OutputError if the result would replace a file in ``target`` that autoprune did not write."""
    if not target.is_dir() or not _entries(target) or _half_moved(target):
        return
    ours = {path.relative_to(target).as_posix() for path in Manifest.read(target).files}
    if foreign := [name for name in sorted(names) if name not in ours and (target / name).exists()]:
        raise OutputError(
            f"{target}: {foreign[0]} there was not written by autoprune, so --overwrite leaves it alone; move it away"
        )


def _put_in_place(work: Path, target: Path, names: Sequence[str], overwrite: bool) -> None:
    if work.parent == target:
        _move_out(work, target, names, overwrite)
        return
    old = _neighbour(target, "old")
    if target.is_dir() and not _entries(target):
        target.rmdir()
    if target.exists() and not old.exists():
        check_target(target, overwrite)
        check_foreign(target, names)
        target.rename(old)  # two renames: whoever looks sees the old result, none, or the new one, and no mixture
    if not target.exists():
        work.rename(target)
    sync(target.parent)
    if old.is_dir():
        _settle(old, target)


def _settle(old: Path, target: Path) -> None:
    """The files in an earlier result's directory that autoprune did not write move to the new one; the others go."""
    ours = (
        Manifest.read(old).files if (old / MANIFEST).is_file() else []
    )  # the manifest, which says which are ours, is the last of them
    for path in sorted([*old.iterdir(), *(old / TEMPLATES).glob("*")]):
        if path not in ours and not (path.name == TEMPLATES and path.is_dir()):
            (target / path.relative_to(old)).parent.mkdir(exist_ok=True)
            path.rename(target / path.relative_to(old))
    _remove(old, ours)
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
        _remove(
            target, Manifest.read(target).files if (target / MANIFEST).is_file() else []
        )  # the manifest is the last of them
    for name in sorted(left, key=lambda n: n == MANIFEST):
        (target / name).parent.mkdir(exist_ok=True)
        (work / name).replace(target / name)
    drop_templates(work)
    work.rmdir()
    sync(target)


def _entries(directory: Path) -> list[Path]:
    """What lies in a directory besides a workplace of ours."""
    return [path for path in directory.iterdir() if path.name != INSIDE]


def _half_moved(target: Path) -> bool:
    """Whether a whole result lies in a workplace in the target, or partly there and partly moved out of it already."""
    work = target / INSIDE
    if not (work / MANIFEST).is_file() or (work / STATE).is_file() or (target / MANIFEST).is_file():
        return False
    return all((work / name).exists() != (target / name).exists() for name in Manifest.read(work).written)


def _remove(directory: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
    drop_templates(directory)
