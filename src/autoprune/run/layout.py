"""How a run uses memory: windows per pass, and where hidden states live."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.data.windows import Windows
from autoprune.errors import RecipeError
from autoprune.events import Emit, Notice
from autoprune.model.pruning import split_passes
from autoprune.recipe.recipe import Recipe
from autoprune.run.memory import Layout, Load, choose_layout, shape_of
from autoprune.run.open import Subject, fits, held_bytes
from autoprune.run.sizes import human, parse_memory
from autoprune.steps.base import Step
from autoprune.steps.table import entry
from autoprune.storage.store import CheckpointStore

TOKENS_PER_PASS = 2048  # windows are batched up to about this many tokens per forward pass
TOKENS_PER_UPDATE = 512  # the same where a step trains or judges by held-out windows


def choose_for(
    recipe: Recipe,
    subject: Subject,
    steps: tuple[Step, ...],
    windows: Sequence[Windows | None],
    emit: Emit,
    batch: int,
    ranks: int,
) -> Layout:
    """Windows per pass and the place of hidden states; with a budget for each process, the nearest to what was asked
    for that fits.

    Raises: RecipeError if nothing fits.
    """
    anatomy = subject.store.anatomy
    if anatomy.has_experts and any(step.needs.gradients for step in steps):
        batch = 1  # experts' gradients are taken sample by sample
    at_once = recipe.pruning.true_sequential and looks_first(steps)
    if at_once:
        _check_in_sequence(anatomy.has_experts, ranks)
    wanted = Layout(batch, recipe.run.activations, at_once)
    if recipe.run.memory is None or not isinstance(subject.store, CheckpointStore):
        return wanted
    budget = parse_memory(recipe.run.memory)
    shape = shape_of(
        subject.store.model, anatomy, subject.store.skeleton.storage_dtype, moved=subject.store.device.type != "cpu"
    )
    fixed = recipe.run.activations != "cpu"  # the default place may be changed to fit, one that was asked for may not
    whole = held_bytes(subject.checkpoint, recipe) if subject.store.resident and subject.checkpoint else 0
    load = _load(recipe, subject, windows, batch, ranks)
    layout, need = choose_layout(shape, steps, load, wanted=wanted, fixed_place=fixed, budget=budget, whole=whole)
    chosen = f"{layout.batch} windows per pass, hidden states on {layout.activations}"
    emit(Notice(f"plan for {human(budget)}: {chosen}, about {human(need.total + whole)} at the peak ({need.phase})"))
    return layout


def looks_first(steps: Sequence[Step]) -> bool:
    """Whether a step of the first pass looks at data."""
    return bool(steps) and any(step.needs.samples for step in split_passes(steps)[0])


def _load(recipe: Recipe, subject: Subject, windows: Sequence[Windows | None], batch: int, ranks: int) -> Load:
    """What one process of several sends through the model: its part of the first ``windows``, which calibrate; the
    others evaluate.
    """
    calibration, *evaluation = windows
    samples, tokens = calibration.ids.shape if calibration else (0, 1)
    longest = max(
        (held.ids.shape for held in evaluation if held), key=lambda shape: shape[0] * shape[1], default=(0, 1)
    )
    checkpoint = subject.checkpoint
    held = (
        held_bytes(checkpoint, recipe) if checkpoint and not subject.store.resident and fits(checkpoint, recipe) else 0
    )
    return Load(
        samples=min(samples, -(-samples // (batch * ranks)) * batch),
        tokens=tokens,
        evaluated=longest[0],
        evaluated_tokens=longest[1],
        models=2 if recipe.chosen.pruned_model else 1,
        held=held,
    )


def _check_in_sequence(experts: bool, ranks: int) -> None:
    """Raises: RecipeError if input groups can't be pruned one after the other inside a block."""
    if experts:
        raise RecipeError(
            "--true_sequential can't be used on a mixture of experts: an expert that sees few tokens needs what all of"
            " them see; leave it out"
        )
    if ranks > 1:
        raise RecipeError(
            "--true_sequential sends all samples through a block at once, so several processes can't share them; leave"
            " it out"
        )


def batch_size(recipe: Recipe, seqlen: int, steps: Sequence[str] | None = None) -> int:
    """Windows per forward pass of the recipe's steps, or of others.

    Where nobody says how many, about as many as fill a pass well. Fewer where a step trains, with an update for each
    pass, or judges by held-out windows: 32 windows of 128 tokens would make two passes otherwise, one to fit and one
    to judge by.
    """
    judges = any(entry(name).load().needs.held_out for name in (recipe.steps if steps is None else steps))
    return recipe.run.batch_size or max(1, (TOKENS_PER_UPDATE if judges else TOKENS_PER_PASS) // seqlen)
