"""A result directory made beside its target, file by file, and put in its place when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from autoprune.errors import OutputError
from autoprune.storage.checkpoint import INDEX, SINGLE, Checkpoint
from autoprune.storage.placing import (
    INSIDE,
    MANIFEST,
    STATE,
    TEMPLATES,
    check_foreign,
    check_target,
    listed,
    put_in_place,
    settle,
    sync,
)

LOCK = "in-use.lock"
JOURNAL = "journal-"  # files that only serve to resume start with this
DRAFT = ".writing"
LARGEST_COMPANION = 100 * 2**20  # bytes; the largest tokenizers are of some 40 MB
NOT_COPIED = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


class Workplace:
    """A hidden neighbour of ``target`` in which the result is made: ``target`` stays as it was until all is there.

    A target that can't be replaced, because a disk is mounted there or someone works in it, is its own neighbour: the
    workplace lies in it.
    """

    def __init__(self, target: Path, *, overwrite: bool, resume: bool = False) -> None:
        self.target, self._overwrite, self._resume = target, overwrite, resume
        self._place = target.resolve()  # through links, so that the result lands where the user's word leads
        fixed = os.path.ismount(self._place) or self._place == Path.cwd()
        self.path = self._place / INSIDE if fixed else self._place.parent / f".{self._place.name}.autoprune-partial"
        self._lock = FileLock(self.path / LOCK, timeout=0)

    def tidy(self) -> None:
        """Ends what a run that was stopped right after its result was in place has left to clear away."""
        old = self._place.parent / f".{self._place.name}.autoprune-old"
        if old.is_dir() and (self._place / MANIFEST).is_file():
            settle(old, self._place)
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
                f"--save_model {self.target}: another autoprune run is writing there; wait for it or choose another"
                " directory"
            ) from error
        self._clear()
        there = sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())
        free = shutil.disk_usage(self.path).free + there
        if free < need * 1.01:
            self.leave() if self.unfinished else self.abandon()
            raise OutputError(
                f"--save_model {self.target}: the result needs {need / 2**20:,.1f} MiB, but only {free / 2**20:,.1f}"
                " MiB are free on that disk"
            )

    def _clear(self) -> None:
        """Removes what an earlier run left behind: all of it, or when it is to be resumed only drafts."""
        if self.unfinished and not self._resume and not self._overwrite:
            self._lock.release()
            raise OutputError(
                f"--save_model {self.target}: an unfinished run lies beside it (in {self.path}); --resume goes on with"
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
        """A file of another name, which becomes ``name`` when it is written and on the disk: so that is whole, or not
        there.
        """
        draft = self.path / f"{name}{DRAFT}"
        with writing_to(self.target):
            draft.parent.mkdir(exist_ok=True)
            yield draft
            sync(draft)
            draft.replace(self.path / name)
            sync(draft.parent)

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Writes one safetensors file, whole or not at all."""
        with self._draft(name) as draft:
            save_file(tensors, draft, metadata={"format": "pt"})

    def copy(self, name: str, checkpoint: Checkpoint, tensors: Sequence[str]) -> None:
        """Writes one safetensors file of tensors as another checkpoint holds them, whole or not at all."""
        with self._draft(name) as draft:
            checkpoint.copy(tensors, draft)

    def shards(self) -> list[dict[str, object]]:
        """Name, size and SHA-256 of every shard written, in order."""
        shards = [self.path / name for name in self.names() if name.endswith(".safetensors")]
        return [{"name": p.name, "bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in shards]

    def copy_companions(self, source: Path) -> None:
        """Copies the model's other files (config, tokenizer, …) byte for byte."""
        for path in companions(source):
            with self._draft(path.relative_to(source).as_posix()) as draft:
                shutil.copyfile(path, draft)

    def write(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all."""
        with self._draft(name) as draft:
            draft.write_text(text, encoding="utf-8")

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
        names = [*listed(self.path), MANIFEST] if (self.path / MANIFEST).is_file() else self.names()
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
            put_in_place(self.path, self._place, names, self._overwrite)
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


def companions(source: Path) -> list[Path]:
    """The files of a model that are copied byte for byte: all but weights, what autoprune itself writes, hidden ones,
    and what is too large.
    """
    files = [path for path in _beside_weights(source) if path.name not in (MANIFEST, "README.md")]
    return [path for path in files if path.stat().st_size <= LARGEST_COMPANION]


def too_large(source: Path) -> list[str]:
    """The names of files that lie beside a model's weights and are no part of it, to judge by their size."""
    return [path.name for path in _beside_weights(source) if path.stat().st_size > LARGEST_COMPANION]


def _beside_weights(source: Path) -> list[Path]:
    found = sorted([*source.iterdir(), *(source / TEMPLATES).glob("*.jinja")])
    return [
        path
        for path in found
        if path.is_file() and not path.name.endswith(NOT_COPIED) and not path.name.startswith(".")
    ]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turns the system's errors while writing into one that names the place and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = (
            getattr(error, "errno", None) == errno.ENOSPC
            or "No space left" in str(error)
            or "os error 28" in str(error)
        )
        cause = "the disk is full" if full else f"can't write there ({error})"
        raise OutputError(
            f"{target}: {cause}; what was there before is unchanged. Free some space or choose another place"
        ) from error
