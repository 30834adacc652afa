"""The worked example of docs/adding-a-step.md runs, and its steps prune a model."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType

import pytest
from pages import EXAMPLE, fenced

from autoprune.errors import RecipeError


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The page's code, run from top to bottom as one module."""
    module = ModuleType("worked_example")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "worked_example", module)
        for code in fenced(EXAMPLE.read_text(encoding="utf-8"), "python"):
            exec(compile(code, EXAMPLE.name, "exec", dont_inherit=True), module.__dict__)
    return module


def test_the_worked_example_runs(example: ModuleType) -> None:
    example.test_energy()


@pytest.mark.parametrize("steps", ["energy", "energy,rescale", "energy,careful", "energy,polish"])
def test_the_worked_example_prunes_a_model(example: ModuleType, monkeypatch: pytest.MonkeyPatch, steps: str) -> None:
    """As a plugin, through the same table that other packages enter; its option is one like any other."""
    import autoprune
    from autoprune.steps import table

    names = {"energy": "Energy", "rescale": "Rescale", "careful": "CarefulRescale", "polish": "Polish"}
    entries = [EntryPoint(name, f"worked_example:{kind}", table.ENTRY_POINT_GROUP) for name, kind in names.items()]
    monkeypatch.setitem(sys.modules, "worked_example", example)
    monkeypatch.setattr(table, "entry_points", lambda group: EntryPoints(entries).select(group=group))
    table.table.cache_clear()
    try:
        with pytest.raises(RecipeError, match="polish sees the whole pruned model, so it must come behind energy"):
            table.check_order(["polish", "energy"], given=True)
        result = autoprune.prune(
            "demo",
            steps=steps,
            energy_power=1.5,
            sparsity_ratio=0.5,
            calibration_data="demo",
            nsamples=6,
            seqlen=32,
            batch_size=1,
        )
    finally:
        table.table.cache_clear()
    assert result.summary is not None
    assert result.summary.sparsity == 0.5
    assert list(result.summary.whole) == (["polish"] if "polish" in steps else [])
    notes = result.summary.layers[0].notes
    assert ("loss before" in notes) == ("careful" in steps)
    assert notes.get("loss after", 0.0) <= notes.get("loss before", 0.0)
