"""What a run writes: its beginning, a stop that can be resumed, and the end."""

from __future__ import annotations

import contextlib
from pathlib import Path

from autoprune.errors import DataError, OutputError
from autoprune.events import Emit, Notice
from autoprune.results.types import PruningSummary
from autoprune.run.held import check_savable
from autoprune.run.labels import method_label, target_label
from autoprune.run.open import Subject
from autoprune.run.state import Run
from autoprune.storage.card import model_card
from autoprune.storage.files import writing_to
from autoprune.storage.manifest import MANIFEST, Manifest, manifest
from autoprune.storage.result import Workplace
from autoprune.storage.shards import CheckpointWriter, companions, too_large

NO_ERRORS = "no calibration data was read, so layer errors were not measured (--layer_errors measures them)"


def begin(workplace: Workplace, subject: Subject, copies: int, emit: Emit) -> None:
    """Raises: OutputError if the place is taken or too small; ModelError if the model in memory can't be saved
    at all.
    """
    if subject.checkpoint:
        source = subject.checkpoint.directory
        beside = companions(source)
        need = subject.checkpoint.bytes * copies + sum(path.stat().st_size for path in beside)
        workplace.begin(need, [path.relative_to(source).as_posix() for path in beside])
        if names := too_large(source):
            emit(Notice(f"not copied, for no file of a model but its weights is as large: {', '.join(names)}"))
        return
    model = subject.store.model
    check_savable(model)
    workplace.begin(sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))


def stop(run: Run, workplace: Workplace) -> None:
    """After an error: what can be resumed stays, the rest is removed."""
    finished = any(workplace.path.glob("journal-block-*")) or workplace.whole
    if run.subject.checkpoint and workplace.unfinished and finished:
        workplace.leave()
        run.emit(
            Notice(f"what is finished stays in {workplace.path}; the same command with --resume goes on from there")
        )
    else:
        workplace.abandon()


def write(run: Run, writer: CheckpointWriter | None, summary: PruningSummary) -> None:
    """Writes what is left of the result, and puts all of it in place. Raises: OutputError if it can't be written."""
    workplace, subject = run.workplace, run.subject
    assert workplace is not None
    if writer is not None:
        writer.finish()
    else:
        with writing_to(workplace.target):
            subject.store.model.save_pretrained(workplace.path)  # type: ignore[operator]
            with contextlib.suppress(DataError):  # without its tokenizer a model in memory is saved alone
                subject.load_tokenizer().save_pretrained(workplace.path)
    workplace.write(
        "README.md", model_card(run.about, summary, method_label(run.recipe), target_label(run.plan.target))
    )
    workplace.write(MANIFEST, manifest(run.about, summary, workplace.made(), delete=run.recipe.output.delete))
    workplace.publish()


def put_in_place(run: Run) -> PruningSummary:
    """The rest of a run that was stopped when all was made and nothing, or not everything, was in its place."""
    assert run.workplace is not None
    summary = already_complete(run, run.workplace.path)
    run.workplace.publish()
    return summary


def already_complete(run: Run, directory: Path) -> PruningSummary:
    """The outcome of a run that was only interrupted afterwards, while its result was evaluated.

    Raises: OutputError if the result in ``directory`` is of another run.
    """
    found = Manifest.read(directory)
    if difference := found.difference(run.about):
        raise OutputError(
            f"--resume: {directory} holds the result of another run: {difference}; choose another directory, or"
            " --overwrite it"
        )
    run.emit(Notice(f"{directory} is complete already; going on with what comes after"))
    return found.summary(run.seconds)
