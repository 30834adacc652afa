"""What is read of a model before long work begins: all its values, and its blocks for the replay check."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.events import Emit, Phase, Work
from autoprune.model.replay import require_replay
from autoprune.model.training import check_precision
from autoprune.run.open import Subject
from autoprune.steps.base import Step
from autoprune.steps.whole import ModelStep
from autoprune.storage.store import CheckpointStore
from autoprune.storage.values import ValueCheck

REPLAY_TOKENS = 16  # of two windows: what the replay check runs on


def check_values(subject: Subject, emit: Emit) -> str:
    """Reads all weights once and returns their fingerprint. Raises: ModelError if one is NaN or infinite."""
    if subject.checkpoint is None or not isinstance(subject.store, CheckpointStore):
        return _check_held(subject)
    return _finish(ValueCheck(subject.checkpoint, subject.store.skeleton.used), emit)


def check_model(subject: Subject, ids: Tensor, emit: Emit) -> str:
    """The replay check on some calibration windows, and the fingerprint of all weights, whose values it judges on the
    way.

    Raises: ModelError if a weight is NaN or infinite, or if blocks run alone give other numbers than in the model.
    """
    if subject.checkpoint is None or not isinstance(subject.store, CheckpointStore):
        fingerprint = _check_held(subject)
        check_replay(subject, ids, emit)
        return fingerprint
    values = ValueCheck(subject.checkpoint, subject.store.skeleton.used)
    values.read(subject.store.outside)
    with subject.store.judged_by(values):
        check_replay(subject, ids, emit)
    return _finish(values, emit)


def check_precisions(subject: Subject, steps: Sequence[Step], ids: Tensor) -> None:
    """Raises: RecipeError if a step on the whole model, which comes last, could not run in the precision asked for."""
    for step in steps:
        if isinstance(step, ModelStep):
            check_precision(subject.store, step.compute_dtype, ids)


def check_replay(subject: Subject, ids: Tensor, emit: Emit) -> None:
    """The replay check on the beginnings of two windows.

    Raises: ModelError if blocks run alone give other numbers than in the model.
    """
    require_replay(subject.store, ids[:2, :REPLAY_TOKENS], emit)


def _finish(values: ValueCheck, emit: Emit) -> str:
    emit(Phase("checking weights"))
    return values.finish(lambda done, total: emit(Work("checking weights", done, total)))


def _check_held(subject: Subject) -> str:
    for name, tensor in subject.store.model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{subject.name}: tensor {name} holds NaN or infinity; the model is damaged or its training diverged"
            )
    return "in memory"
