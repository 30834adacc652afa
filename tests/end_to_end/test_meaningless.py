"""Options that would change nothing beside the others: refused where a result is missed, else said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune import RecipeError
from end_to_end.tiny import SEQLEN, Texts

Options = dict[str, Any]


@pytest.fixture
def options(texts: Texts) -> Options:
    return {"nsamples": 4, "seqlen": SEQLEN, "calibration_data": texts.calibration, "sparsity_ratio": 0.5}


def test_options_of_steps_that_are_not_taken_are_said(tiny: Path, options: Options) -> None:
    """Not if they are as usual, nor those of a step that another one takes along."""
    told = autoprune.prune(tiny, **options, damping=0.5, threshold=0.3, column_block=128, quiet=True).warnings
    assert told == (
        "--damping: about sparsegpt, which is none of the steps here (wanda); nothing changes",
        "--threshold: about barber, which is none of the steps here (wanda); nothing changes",
    )
    options |= {"steps": "auto", "auto_tries": "wanda+refit,sparsegpt", "batch_size": 2}
    warnings = autoprune.prune(tiny, **options, damping=0.5, refit_damping=0.1, quiet=True).warnings
    assert not any("nothing changes" in text for text in warnings)


def test_resuming_needs_a_place(tiny: Path, options: Options, texts: Texts, tmp_path: Path) -> None:
    measured: Options = {"eval_data": texts.heldout, "seqlen": SEQLEN}
    for call in (
        lambda: autoprune.prune(tiny, resume=True, **options),
        lambda: autoprune.evaluate(tiny, resume=True, **measured),
        lambda: autoprune.compare(tiny, tiny, resume=True, **measured),
    ):
        with pytest.raises(RecipeError, match=r"^--resume goes on .*, and nothing is saved; give .*--save"):
            call()
    autoprune.evaluate(tiny, resume=True, save_ppl=tmp_path, **measured)


def test_nothing_is_measured_that_is_to_be_saved(tiny: Path, options: Options, texts: Texts, tmp_path: Path) -> None:
    recipe = autoprune.Recipe.of(model=tiny, save_ppl=tmp_path, eval_data=texts.heldout, **options)
    with pytest.raises(RecipeError, match=r"measure is False, .* which --save_ppl is for; leave out one of them"):
        autoprune.run(recipe, measure=False)
    with pytest.raises(RecipeError, match="which --compare is for"):
        autoprune.run(autoprune.Recipe.of(model=tiny, compare=True, **options), measure=False)
    with pytest.raises(RecipeError, match="which eval_data is for"):
        autoprune.run(autoprune.Recipe.of(model=tiny, **options), measure=False, eval_data=texts.heldout)
    assert not list(tmp_path.iterdir())
