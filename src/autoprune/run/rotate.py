"""A dense model in another basis: the same function, written as an ordinary checkpoint, to be pruned afterwards.

A rotation changes the dense model and not one block, so it is a command before pruning and no step of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.core.rotation import Schedule, learn_rotation
from autoprune.data.handed import recipe_given
from autoprune.data.windows import Windows
from autoprune.errors import ModelError, RecipeError
from autoprune.evaluation.perplexity import streamed_logits
from autoprune.events import Emit, Notice, Phase, Progress, Work
from autoprune.machine.allocator import restored
from autoprune.model.experts import eager_experts
from autoprune.model.fold import Fold, fold_ends
from autoprune.model.heads import HeadFold, find_heads
from autoprune.model.seams import find_fold
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs, walk
from autoprune.recipe.checks import check_bounds, made, model_word, place_word
from autoprune.recipe.commands import ROTATE
from autoprune.recipe.keywords import RotateOptions, Unpack
from autoprune.recipe.options import RotationOptions
from autoprune.recipe.recipe import Recipe
from autoprune.report.progress import following
from autoprune.run.check import check_model
from autoprune.run.layout import batch_size
from autoprune.run.open import Subject, open_model
from autoprune.run.plan import check_apart, choose_seqlen
from autoprune.run.shortage import told_with
from autoprune.run.texts import calibration_of
from autoprune.run.turns import Turns
from autoprune.run.write import begin
from autoprune.storage.complete import check_complete
from autoprune.storage.manifest import versions
from autoprune.storage.result import Workplace, check_target
from autoprune.storage.rotated import RotatedWriter, TermFiles
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore

# How far logits may move, relative to their size: weights are rounded once more, to what they are stored in.
ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
FEW_WINDOWS, FEW_TOKENS = 4, 64  # on which the two models are compared


@dataclass(frozen=True)
class RotateResult:
    """A rotated model and what was seen on the way."""

    directory: Path
    entropy_before: float  # of the importance of all weights that turn, in nats, summed over rows and columns
    entropy_after: float
    difference: float  # of the two models' logits, relative to their size
    notices: tuple[str, ...] = field(repr=False)

    @property
    def change(self) -> float:
        """Of the entropy, as a fraction: negative where it fell."""
        return self.entropy_after / self.entropy_before - 1 if self.entropy_before else 0.0


@restored()
def rotate(
    model: str | Path, out: str | Path, *, emit: Emit | None = None, **options: Unpack[RotateOptions]
) -> RotateResult:
    """Writes ``model`` (hub id, directory or ``"demo"``) to ``out`` in a basis that loses less by pruning.

    ``options``: ``basis``, ``rotate_steps``, ``rotate_rate``, ``rotate_blocks``, those of model and calibration,
    ``batch_size``, ``activations``, ``overwrite``. The result computes what the model computed, to rounding, and is
    pruned like any other. It is put in place when it is whole and its logits were compared with the model's.
    Raises: AutoPruneError for everything that the user can mend; ModelError with the reason for an architecture that
    can't be rotated so.
    """
    target = place_word(out, "out")
    recipe, how = _choices(model, target, dict(options))
    remedy = "--batch_size 1, --activations disk, and fewer or shorter windows (--nsamples, --seqlen) need less"
    with told_with(lambda: remedy), following(emit, quiet=recipe.run.quiet) as seen:
        return _rotated(recipe, how, target, seen)


def _rotated(recipe: Recipe, how: RotationOptions, target: Path, emit: Emit) -> RotateResult:
    check_target(target, recipe.output.overwrite)
    check_apart(target, recipe)
    subject = open_model(recipe, resident=False)
    windows = calibration_of(recipe, subject, choose_seqlen(recipe, subject.context), emit)
    fingerprint = check_model(subject, windows.ids, emit)
    fold = find_fold(subject.store, windows.ids) if how.basis != "heads" else None
    heads = find_heads(subject.store, windows.ids) if how.basis != "stream" else None
    told = tuple(text for found in (fold, heads) if found is not None for text in found.notices)
    for text in told:
        emit(Notice(text))
    workplace = Workplace(target, overwrite=recipe.output.overwrite)
    workplace.tidy()
    begin(workplace, subject, _room(subject), emit)
    try:
        return _Rotation(recipe, how, subject, fingerprint, windows, fold, heads, told, workplace, emit).run()
    except BaseException:
        workplace.abandon()
        raise


def _choices(model: str | Path, out: str | Path, options: dict[str, Any]) -> tuple[Recipe, RotationOptions]:
    """Raises: RecipeError for options that mean nothing here, and for values that can't be used."""
    ROTATE.check(options)
    ours = {f.name for f in dataclasses.fields(RotationOptions)}
    how = made(RotationOptions, options)
    check_bounds(how)
    if how.basis == "heads" and "rotate_blocks" in options:
        raise RecipeError("--rotate_blocks changes nothing with --basis heads: each block's heads are its own")
    others = {name: value for name, value in options.items() if name not in ours}
    return recipe_given({"model": model_word(model), "sparsity_ratio": 0, "save_model": str(out), **others}), how


def _room(subject: Subject) -> int:
    """How many times the model's size the work takes on disk: terms in float32, the result, a head and Grams."""
    assert isinstance(subject.store, CheckpointStore)
    return 2 + max(1, 4 // subject.store.skeleton.storage_dtype.itemsize)


@dataclass
class _Rotation:
    """One rotation while it is under way."""

    recipe: Recipe
    how: RotationOptions
    subject: Subject
    fingerprint: str
    windows: Windows
    fold: Fold | None  # of the hidden states
    heads: HeadFold | None  # of attention's values
    told: tuple[str, ...]
    workplace: Workplace
    emit: Emit
    terms: TermFiles = field(init=False)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.subject.store, CheckpointStore)
        self.store, self.terms = self.subject.store, TermFiles(self.workplace)
        self.turns = Turns(self.fold, self.heads, self.how, self.terms)
        self.blocks = len(self.store.anatomy.blocks)
        self.few = self.windows.ids[:FEW_WINDOWS, :FEW_TOKENS]

    @torch.no_grad()
    def run(self) -> RotateResult:
        """Observe, learn, write, compare, put in place."""
        dense = self._logits(self.store)
        self._observe()
        rotation, stream = self._learned()
        self.terms.remove("terms")
        writer, heads = self._write(rotation)
        self.terms.remove("grams")
        difference = self._difference(dense)
        before, after = (sum(part) for part in zip(stream, *heads, strict=True))
        found = {"entropy_before": before, "entropy_after": after, "difference": difference}
        writer.describe(self._about(found))
        self.workplace.publish()
        return RotateResult(self.workplace.target, before, after, difference, self.told)

    def _observe(self) -> None:
        """What every block's rotations are learned from, of the dense model on the calibration windows, into files."""
        ids, batch = self.windows.ids, batch_size(self.recipe, self.windows.ids.shape[1])
        self.emit(Phase("observing", total=self.blocks))
        place = Place(self.recipe.run.activations, self.store.device, self.workplace.path)
        inputs, stream = prepare_inputs(self.store, ids, batch, place)
        with eager_experts(self.store.anatomy.model):
            for block in walk(self.store):
                with self.turns.watching(block, ids.numel()) as watched:
                    for i in inputs.batches:
                        stream[i] = inputs.calls.of(i, block.index)(block.module, stream[i])
                        watched.next_pass()
                        self.emit(Progress(block.index, self.blocks, "observe", i + 1, len(stream)))
                watched.keep()

    def _learned(self) -> tuple[Float[Tensor, "width width"] | None, tuple[float, float]]:
        """The rotation of the hidden states in float64, if they turn, and the entropy without and with it."""
        if self.fold is None:
            return None, (0.0, 0.0)
        how, name = self.how, "learning the rotation"
        self.emit(Phase(name, total=how.rotate_steps))
        device = self.store.device if self.store.device.type == "cuda" else torch.device("cpu")
        with torch.enable_grad():
            matrix = learn_rotation(
                self.fold.width,
                self.blocks,
                lambda index: self.terms.read(index, device),
                Schedule(how.rotate_steps, how.rotate_rate, how.rotate_blocks),
                torch.Generator().manual_seed(self.recipe.calibration.seed),
                lambda step: self.emit(Work(name, step + 1, how.rotate_steps)),
                device,
            ).matrix
        return matrix, (self._entropy(torch.eye(self.fold.width)), self._entropy(matrix.float()))

    def _entropy(self, rotation: Float[Tensor, "width width"]) -> float:
        """Of the importance of all that touches the hidden states, in nats."""
        terms = (term for index in range(self.blocks) for term in self.terms.read(index, rotation.device))
        return sum(float(term.entropy(rotation)) for term in terms)

    def _write(self, rotation: Float[Tensor, "width width"] | None) -> tuple[RotatedWriter, list[tuple[float, float]]]:
        """Writes the model; values are turned last. Also gives the entropy of each attention before and after."""
        writer = RotatedWriter(self.workplace, self.store, None if self.fold is None else self.fold.ends)
        self.emit(Phase("writing", total=self.blocks))
        entropies: list[tuple[float, float]] = []
        for block in walk(self.store):
            done = itertools.count(1)
            total = len(self.heads.blocks[block.index]) * self.how.rotate_steps if self.heads else 0

            def tick(index: int = block.index, done: Iterator[int] = done, total: int = total) -> None:
                self.emit(Progress(index, self.blocks, "learn the values' basis", next(done), total))

            dtypes = {name: p.dtype for name, p in block.module.named_parameters()}
            names = self.turns.turn(block, rotation, entropies, tick)
            turned = {name: block.module.get_parameter(name) for name in names}
            for name, parameter in turned.items():
                parameter.data = parameter.data.to(dtypes[name])
            self.store.finish(block, {}, {name: p.data.cpu() for name, p in turned.items()})
            self.emit(Progress(block.index, self.blocks, "write", 1, 1))
        if self.fold is not None and rotation is not None:
            fold_ends(self.store.model, self.fold.ends, rotation)
        writer.finish()
        return writer, entropies

    def _difference(self, dense: Tensor) -> float:
        """How far the written model's logits are from the dense one's, relative to their size.

        Raises: ModelError if that is more than rounding.
        """
        options, dtype = self.recipe.model, self.store.skeleton.storage_dtype
        skeleton = build_skeleton(
            open_checkpoint(self.workplace.path),
            options.dtype,
            self.store.device,
            trust_remote_code=options.trust_remote_code,
        )
        check_complete(skeleton)
        self.emit(Phase("comparing", total=self.blocks))
        turned = self._logits(CheckpointStore(skeleton, resident=False))
        gap = float((turned - dense).norm() / dense.norm())
        most = max(ROUNDING[dtype], ROUNDING[skeleton.model.dtype])
        if not gap <= most:
            raise ModelError(
                f"{self.subject.name}: the rotated model's logits differ from the model's by {gap:.2g} of their size,"
                f" and rounding to {dtype} explains {most:g} at most; nothing was written. Please report it, and prune"
                " the model as it is"
            )
        return gap

    def _logits(self, store: CheckpointStore) -> Float[Tensor, "samples tokens vocab"]:
        """Of a few windows, in float32."""
        parts = streamed_logits(store, self.few, 1, Place("device", store.device), self.emit)
        return torch.cat([logits.float().cpu() for _, logits in parts])

    def _about(self, found: dict[str, float]) -> dict[str, Any]:
        """What the result depends on, and what was found."""
        name, calibration = self.subject.name, self.recipe.calibration
        return {
            "versions": versions(),
            "seed": calibration.seed,
            "model": {
                "name": name,
                "local": Path(name).exists() or name == "demo",
                "fingerprint": self.fingerprint,
            },
            "calibration": {"nsamples": calibration.nsamples, **self.windows.provenance},
            "rotation": {**dataclasses.asdict(self.how), **found, "notices": list(self.told)},
        }
