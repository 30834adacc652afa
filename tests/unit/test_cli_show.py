"""What the command line prints at 60, 80 and 120 columns: no line is longer, no number and no file name breaks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from test_report_distance import shift
from test_speed import DENSE, FEWER, model, result

from autoprune.cli import show
from autoprune.evaluation.audit import AuditReport
from autoprune.results.comparison import Comparison, Flips, ModelComparison
from autoprune.run.inspect import Estimate, Inspection, LayerLine

HASH = "0123456789abcdef" * 4
COSTS = (
    Estimate("magnitude", 0.14 * 2**30, 0.14 * 2**30, "under a minute"),
    Estimate("wanda+barber, all blocks", 1.25 * 2**30, 0.75 * 2**30, "about 12 minutes"),
)
LAYERS = (
    LayerLine("self_attn.q_proj", 576, 576, "self_attn.k_proj, self_attn.v_proj", "0-29"),
    LayerLine("block_sparse_moe.experts.0.w1", 14336, 4096, "", "0-29"),
)
INSPECTION = Inspection(
    "demo", "model.layers", 30, 134_515_008, "bfloat16", LAYERS, 0.9997, (), (), "exact", COSTS, ("Times are rough.",)
)
COMPARED = Comparison(
    "out/dense-model",
    tuple(
        ModelComparison(f"out/pruned-{size}", {"wikitext2": shift(size)}, (Flips("boolq", "acc", 3270, 9, 5, 2, 0.4),))
        for size in (0.1, 0.5)
    ),
    {},
)
AUDIT = AuditReport(Path("out"), (), (), {"model-00001-of-00002.safetensors": HASH})


@pytest.fixture(params=[60, 80, 120])
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The lines that a function prints on a terminal of that width."""

    def lines(shown: Callable[..., None], *given: object) -> list[str]:
        out = io.StringIO()
        console = Console(file=out, width=request.param, force_terminal=True, color_system=None, markup=False)
        monkeypatch.setattr(show, "terminal", lambda: console)
        shown(*given)
        found = out.getvalue().splitlines()
        assert max(map(len, found)) <= request.param, max(found, key=len)
        return found

    return lines


def test_a_layer_and_a_method_take_a_line_each(printed: Callable[..., list[str]]) -> None:
    lines = printed(show.show_inspection, INSPECTION)
    for whole in ("self_attn.q_proj ", "block_sparse_moe.experts.0.w1 ", "14336 x 4096", "134,515,008"):
        assert sum(whole in line for line in lines) == 1
    for cost in COSTS:
        (line,) = (line for line in lines if line.startswith(f"{cost.method}  "))
        assert f"{cost.bytes / 2**30:.2f} GiB" in line
        assert cost.time in line


def test_a_hash_is_cut_and_its_file_is_not(printed: Callable[..., list[str]]) -> None:
    """It stands whole where there is room, and wherever it is no terminal."""
    (line,) = (line for line in printed(show.show_audit, AUDIT) if HASH[:8] in line)
    assert line.endswith("  model-00001-of-00002.safetensors")
    assert (HASH in line) == ("…" not in line)


def test_comparisons(printed: Callable[..., list[str]]) -> None:
    lines = printed(show.show_comparison, COMPARED, "out/compared")
    assert lines[-1] == "comparison: out/compared"
    for one in COMPARED.models:
        mean = one.shifts["wikitext2"].kld.mean
        assert any(f"{mean:.4f} ± " in line for line in lines)


def test_speeds(printed: Callable[..., list[str]]) -> None:
    lines = printed(show.show_speed, result(DENSE, model("out/smaller-by-a-quarter", 0.8, **FEWER)), None)
    assert any("100,000,000" in line for line in lines)
    assert sum("0.80" in line for line in lines) >= 1
