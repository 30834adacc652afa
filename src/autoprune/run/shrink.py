"""A smaller dense model: fewer blocks, written as an ordinary checkpoint that every engine runs faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoprune.core.shrinking import lowest, run_distances
from autoprune.data.windows import Windows
from autoprune.errors import ModelError
from autoprune.evaluation.without import least_missed
from autoprune.events import Emit, Notice, Phase
from autoprune.machine.allocator import restored
from autoprune.model.influence import observe_turns
from autoprune.model.likeness import check_kinds, check_same_function
from autoprune.model.rescale import factors
from autoprune.model.stream import Place
from autoprune.model.walk import Inputs, prepare_inputs
from autoprune.recipe.checks import place_word
from autoprune.recipe.keywords import ShrinkChoices, Unpack
from autoprune.recipe.options import ShrinkOptions
from autoprune.recipe.recipe import Recipe
from autoprune.report.progress import following
from autoprune.run.check import check_model, check_precisions
from autoprune.run.layout import batch_size, choose_for
from autoprune.run.memory import Layout, check_whole
from autoprune.run.numbers import count_of
from autoprune.run.open import Subject, open_model
from autoprune.run.plan import calibrated_shape, check_apart, check_held_out, choose_seqlen, say_of_weights
from autoprune.run.shortage import shortage_told
from autoprune.run.shrink_choices import choices
from autoprune.run.shrink_cuts import Cuts, check_experts, plan_cuts
from autoprune.run.shrink_result import ShrinkResult, completed, result_of
from autoprune.run.shrink_walk import ShrinkWalk
from autoprune.run.shrink_whole import written
from autoprune.run.shrink_width import with_layout
from autoprune.run.texts import calibration_of
from autoprune.run.write import begin
from autoprune.steps.base import Step
from autoprune.steps.options import HEALING, HEALINGS
from autoprune.steps.table import make_steps
from autoprune.steps.whole import ModelStep
from autoprune.storage.card import shrink_card
from autoprune.storage.complete import check_complete
from autoprune.storage.cuts import expert_number
from autoprune.storage.identity import described_by
from autoprune.storage.journal import Journal, Notebook
from autoprune.storage.manifest import MANIFEST, rotation_manifest, versions
from autoprune.storage.result import Workplace, check_target
from autoprune.storage.shards import CheckpointWriter
from autoprune.storage.skeleton import build_skeleton
from autoprune.storage.smaller import Descriptions, check_shrinkable, open_smaller
from autoprune.storage.source import open_checkpoint
from autoprune.storage.store import CheckpointStore

FEW_WINDOWS = 8  # on which divergence without a block is measured


@restored()
def shrink(
    model: str | Path, out: str | Path, *, emit: Emit | None = None, **options: Unpack[ShrinkChoices]
) -> ShrinkResult:
    """Writes ``model`` (hub id, directory or ``"demo"``) to ``out`` with fewer blocks, as an ordinary checkpoint.

    ``options``: those of ``ShrinkOptions`` (``blocks``, ``by``, ``heal``, …), of model, calibration and run, of the
    healing (``epochs``, ``learning_rate``, …), ``overwrite`` and ``resume``. What stays and is not healed keeps its
    bits.
    Raises: AutoPruneError for everything that the user can mend; ModelError for a model that can't be made smaller.
    """
    target = place_word(out, "out")
    recipe, how = choices(model, target, dict(options))
    with shortage_told(recipe), following(emit, quiet=recipe.run.quiet) as seen:
        return _shrunk(recipe, how, target, seen)


def _shrunk(recipe: Recipe, how: ShrinkOptions, target: Path, emit: Emit) -> ShrinkResult:
    goes_on = recipe.output.resume and not recipe.output.overwrite and (target / MANIFEST).is_file()
    if not goes_on:
        check_target(target, recipe.output.overwrite)
    check_apart(target, recipe)
    subject = open_model(recipe, resident=False)
    assert isinstance(subject.store, CheckpointStore)
    count = count_of("blocks", how.blocks, len(subject.store.anatomy.blocks), least=1)
    check_shrinkable(subject.store, fewer_blocks=bool(count))
    place = Descriptions(subject.store.skeleton, trust_remote_code=recipe.model.trust_remote_code)
    cuts = plan_cuts(subject.store, place, how, emit)
    say_of_weights(subject, emit, "made smaller")
    windows = calibration_of(recipe, subject, choose_seqlen(recipe, subject.context), emit)
    layout = _layout(recipe, how, subject, windows, count, emit)
    about = _about(recipe, how, subject, windows, check_model(subject, windows.ids, emit))
    check_precisions(subject, _steps(recipe, how), windows.ids)
    check_experts(subject.store, cuts, windows.ids)
    if goes_on:
        return completed(target, about)
    cuts = with_layout(subject.store, place, cuts, windows.ids)
    workplace = Workplace(target, overwrite=recipe.output.overwrite, resume=recipe.output.resume)
    workplace.tidy()
    whole = any(isinstance(step, ModelStep) for step in _steps(recipe, how))  # its blocks lie beside the walk's
    begin(workplace, subject, 1 + whole, emit)
    try:
        if workplace.whole:
            found = completed(workplace.path, about)
            workplace.publish()
            return dataclasses.replace(found, directory=target)
        return _Shrinking(recipe, how, subject, windows, layout, count, place, cuts, workplace, about, emit).run()
    except BaseException as error:
        if workplace.unfinished and not isinstance(error, ModelError):  # a model that is refused will be again
            workplace.leave()
            emit(Notice(f"what is finished stays in {workplace.path}; the same command with --resume goes on"))
        else:
            workplace.abandon()
        raise


def _steps(recipe: Recipe, how: ShrinkOptions) -> tuple[Step, ...]:
    """Those that heal."""
    return make_steps(HEALINGS[how.heal], recipe.step_options)


def _layout(recipe: Recipe, how: ShrinkOptions, subject: Subject, windows: Windows, count: int, emit: Emit) -> Layout:
    """Windows per pass and the place of hidden states, as for the healing, which needs most.

    Raises: RecipeError if nothing fits into memory, or no sample is left to judge a healing by.
    """
    steps = _steps(recipe, how)
    most = steps or make_steps(HEALINGS[HEALING], recipe.step_options)
    samples, seqlen = windows.ids.shape
    layout = choose_for(recipe, subject, most, [windows], emit, batch_size(recipe, seqlen), 1)
    check_held_out(steps, samples, layout.batch)
    shape, total = calibrated_shape(subject, windows, layout.batch), len(subject.store.anatomy.blocks)
    smaller = dataclasses.replace(shape, parameters=shape.parameters * (total - count) // total)
    device, place = subject.store.device, layout.activations
    beside = place == "device" or (place == "cpu" and device.type == "cpu")  # the dense model's last hidden states
    states = samples * seqlen * shape.width * shape.running if beside else 0
    check_whole(smaller, steps, device, f"--heal {HEALING}", states)
    return layout


def _about(recipe: Recipe, how: ShrinkOptions, subject: Subject, windows: Windows, fingerprint: str) -> dict[str, Any]:
    """What the result depends on."""
    assert subject.checkpoint is not None
    model = {
        "name": subject.name,
        "local": Path(subject.name).exists() or subject.name == "demo",
        "fingerprint": fingerprint,
        **described_by(subject.checkpoint.directory, subject.store.model),
        **({"weights": subject.checkpoint.note} if subject.checkpoint.note else {}),
    }
    healing = {k: v for name in HEALINGS[how.heal] for k, v in dataclasses.asdict(recipe.options_of(name)).items()}
    return {
        "versions": versions(),
        "seed": recipe.calibration.seed,
        "model": model,
        "calibration": {"nsamples": recipe.calibration.nsamples, **windows.provenance},
        "asked": {**dataclasses.asdict(how), **healing, "dtype": recipe.model.dtype},
    }


@dataclass
class _Shrinking:
    """One run while it is under way."""

    recipe: Recipe
    how: ShrinkOptions
    subject: Subject
    windows: Windows
    layout: Layout
    count: int
    place: Descriptions
    cuts: Cuts
    workplace: Workplace
    about: dict[str, Any]
    emit: Emit

    def run(self) -> ShrinkResult:
        """Choose, check, write, heal, put in place."""
        store, checkpoint = self.subject.store, self.subject.checkpoint
        assert isinstance(store, CheckpointStore) and checkpoint is not None
        self.store, total = store, len(store.anatomy.blocks)
        here = {"batch": self.layout.batch, "device": str(store.device), "threads": torch.get_num_threads()}
        notes = Notebook(self.workplace, self.about | {"here": here})
        chosen = notes.noted("chosen") if notes.goes_on() else None
        if chosen is None:
            chosen = self._chosen(total)
            notes.note("chosen", chosen)
        kept = [block for block in range(total) if block not in chosen["dropped"]]
        small = self._smaller(kept)
        view = small.skeleton.checkpoint
        writer = CheckpointWriter(self.workplace, view, small.outside, len(kept))
        journal, steps = Journal(self.workplace, notes.about, writer), _steps(self.recipe, self.how)
        walk = self._walk(small, kept, chosen.get("sizes", []), journal, steps)
        blocks, losses = written(walk, [step for step in steps if isinstance(step, ModelStep)], self.windows.ids)
        writer.finish()
        sizes = [sum(p.numel() for p in model.parameters()) for model in (store.model, small.model)]
        found = {
            **chosen,
            "parameters_before": sizes[0],
            "parameters_after": sizes[1],
            "blocks": blocks,
            **({"whole": losses} if losses else {}),
            **self._said(),
        }
        self._check_written()
        self.workplace.write("README.md", shrink_card(self.about, found))
        about = self.about | {"shrink": found}
        self.workplace.write(MANIFEST, rotation_manifest(about, self.workplace.made()))
        self.workplace.publish()
        return result_of(self.workplace.target, found)

    def _said(self) -> dict[str, Any]:
        """What the record says of what got narrower."""
        cuts = (cut for cut in (self.cuts.width, self.cuts.experts) if cut is not None)
        return {"narrower": [{"entry": cut.entry, "before": cut.old, "after": cut.new} for cut in cuts]}

    def _chosen(self, total: int) -> dict[str, Any]:
        """The blocks that go, and the scores by which they were chosen."""
        if not self.count:
            return {"dropped": [], "scores": []}
        place, ids = self._streams(), self.windows.ids
        if self.how.by == "divergence":
            gone, scores = least_missed(self.store, ids[:FEW_WINDOWS], self.count, place, self.emit)
            return {"dropped": sorted(gone), "scores": scores}
        self.emit(Phase("scores of blocks", total=total))
        turns = observe_turns(self.store, *prepare_inputs(self.store, ids, self.layout.batch, place), self.emit)
        sizes = {"sizes": list(turns.sizes)}
        if self.how.by == "angular":
            scores = run_distances(turns.last, self.count)
            (first,) = lowest(scores, 1)
            return {"dropped": [*range(first, first + self.count)], "scores": scores, **sizes}
        return {"dropped": lowest(turns.influence, self.count), "scores": list(turns.influence), **sizes}

    def _smaller(self, kept: Sequence[int]) -> CheckpointStore:
        """The smaller model's store, its blocks found to be what they were."""
        small = open_smaller(self.store, self.place, kept, {})
        if self.count:
            check_kinds(self.store.anatomy, small.anatomy, kept)
            check_same_function(self.store, small, kept, self.windows.ids)
        if not self.cuts.entries:
            return small
        return open_smaller(self.store, self.place, kept, self.cuts.entries, self._left_out)

    def _left_out(self, name: str) -> bool:
        """Whether a stored tensor is that of an expert, stored by itself, for which there is no more room."""
        skeleton, cut = self.store.skeleton, self.cuts.experts
        if cut is None or name not in skeleton.converted:
            return False
        owner = skeleton.owners[name].removeprefix(f"{self.store.anatomy.name}.")
        block, _, part = owner.partition(".")
        number = expert_number(name)
        return part in cut.blocks[int(block)] and number is not None and number >= cut.new

    def _walk(
        self, small: CheckpointStore, kept: list[int], sizes: list[float], journal: Journal, steps: Sequence[Step]
    ) -> ShrinkWalk:
        scales = [*factors(sizes, kept)] if self.how.heal == "rescale" else [1.0] * len(kept)
        step = next((step for step in steps if not isinstance(step, ModelStep)), None)
        inputs, stream = Inputs.none(), None
        if (self.how.heal != "none" or self.cuts.entries) and journal.finished() is None:
            inputs, stream = prepare_inputs(self.store, self.windows.ids, self.layout.batch, self._streams())
        return ShrinkWalk(self.store, small, kept, journal, inputs, stream, step, self.cuts, scales, self.emit)

    def _streams(self) -> Place:
        return Place(self.layout.activations, self.store.device, self.workplace.path)

    def _check_written(self) -> None:
        """Raises: ModelError if what was written is not all that its config.json describes."""
        options = self.recipe.model
        check_complete(
            build_skeleton(
                open_checkpoint(self.workplace.path),
                options.dtype,
                self.store.device,
                trust_remote_code=options.trust_remote_code,
            )
        )
