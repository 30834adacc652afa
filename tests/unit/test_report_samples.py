"""Made-up results that the other report tests draw and tabulate, and what is said about them in common."""

from __future__ import annotations

import math

import pytest

from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.results.tidy import PERPLEXITY, Results
from autoprune.results.types import EvaluationRow, PerplexityResult, PruningSummary
from autoprune.results.variants import seed_of, steps_of, texts_of, variants_of

SHAPES = {"self_attn.q_proj": 1024, "self_attn.o_proj": 1024, "mlp.down_proj": 4096}


def summary(*, barber: bool = False, blocks: int = 2, error: float | None = 0.2) -> PruningSummary:
    """Half of every layer is zero; an exchange moved 32 zeros from o_proj to q_proj."""
    layers, sub_blocks = [], []
    for block in range(blocks):
        for name, weights in SHAPES.items():
            moved = {"self_attn.q_proj": 32, "self_attn.o_proj": -32}.get(name, 0) if barber else 0
            notes = {"compared": weights // 2, "inverted": 100, "grown": 40, "dropped": 40 + moved} if barber else {}
            scaled = None if error is None else error * (1 + block)
            layers.append(
                LayerOutcome(block, f"model.layers.{block}.{name}", weights, weights // 2 + moved, scaled, notes)
            )
        if barber:
            sub_blocks += [SubBlockOutcome(block, sub, 2e-4, 1e-4, 1000, 100, 10) for sub in ("self_attn", "mlp")]
    return PruningSummary(tuple(layers), tuple(sub_blocks))


def row(
    method: str,
    target: str,
    value: float,
    *,
    seed: int | None = 0,
    sparsity: float = 0.5,
    source: str = "wikitext2",
    **settings: object,
) -> EvaluationRow:
    """One row with one text."""
    pruning = None if method == "dense" else summary(barber="+barber" in method)
    chosen = {**settings, **({} if seed is None else {"calibration": {"seed": seed, "nsamples": 8}})}
    return EvaluationRow(
        method,
        target,
        0.0 if method == "dense" else sparsity,
        (PerplexityResult(source, value, 128, 10, 1280),),
        chosen,
        pruning,
    )


def sample_rows() -> list[EvaluationRow]:
    """Dense, and Wanda with and without LLM-Barber at two targets; two seeds each."""
    rows = [row("dense", "dense", 4.2412, seed=None)]
    for target, base in (("50 %", 18.0), ("2:4", 2403.4)):
        for seed in (0, 1):
            rows.append(row("wanda", target, base + seed, seed=seed))
            rows.append(row("wanda+barber", target, 0.9 * (base + seed), seed=seed))
    return rows


def test_rows_that_differ_only_by_seed_are_one_variant() -> None:
    """Dense comes first, and the spread is that of the seeds."""
    rows = sample_rows()
    results = Results(rows[1:] + rows[:1])
    assert [(v.name, v.target, len(v.rows)) for v in results.variants] == [
        ("dense", "dense", 1),
        ("wanda", "50 %", 2),
        ("wanda+barber", "50 %", 2),
        ("wanda", "2:4", 2),
        ("wanda+barber", "2:4", 2),
    ]
    spread = results.spread(results.variants[1], PERPLEXITY, "wikitext2 (128)")
    assert spread is not None
    assert (spread.mean, spread.count) == (18.5, 2)
    assert spread.sd == pytest.approx(math.sqrt(0.5))
    assert [seed_of(r) for r in rows[:2]] == [None, 0]


def test_variants_are_told_apart_by_the_settings_that_differ() -> None:
    """Same method and target, another granularity; where results are saved is no difference."""
    rows = [row("wanda+barber", "50 %", 9, prune_granularity=g, threshold=0.1, save_ppl=g) for g in ("block", "layer")]
    assert [v.name for v in variants_of(rows)] == ["wanda+barber (block)", "wanda+barber (layer)"]
    assert len(variants_of([row("wanda", "50 %", 9, save_ppl=where) for where in "ab"])) == 1


def test_numbers_and_switches_are_named_where_words_are_not_enough() -> None:
    """A lone number stands as it is; two would be taken for each other."""
    same = {"prune_granularity": "layer", "threshold": 0.1}
    rows = [row("a+b", "50 %", 9, **same, retain=kept, damping=d) for kept, d in ((True, 0.1), (False, 0.1))]
    assert [v.name for v in variants_of(rows)] == ["a+b (retain)", "a+b"]
    rows = [row("a+b", "50 %", 9, threshold=t, damping=d) for t, d in ((0.1, 0.01), (0.2, 0.02))]
    assert variants_of(rows)[0].name == "a+b (threshold 0.1, damping 0.01)"


def test_settings_of_another_step_tell_nothing_apart() -> None:
    """What the second step is set to does not matter to a run of the first alone."""
    rows = [row("wanda", "50 %", 9, barber={"threshold": t}) for t in (0.1, 0.2)]
    both = [row("wanda+barber", "50 %", 9, barber={"threshold": t}) for t in (0.1, 0.2)]
    assert [v.name for v in variants_of([*rows, *both])] == ["wanda", "wanda+barber (0.1)", "wanda+barber (0.2)"]


def test_labels_that_carry_settings() -> None:
    """They are the name, and steps are read off them."""
    assert steps_of("sparsegpt (damping 0.1)+barber (layer 0.1, retain reconstruction)") == ("sparsegpt", "barber")
    results = Results([row("wanda", "50 %", 10), row("wanda+barber (block 0.1)", "50 %", 9)])
    first, second = results.variants
    assert (second.name, second.family, second.refined, first.refined) == (
        "wanda+barber (block 0.1)",
        "wanda",
        True,
        False,
    )
    assert results.before(second) is first


def test_only_equal_sparsity_is_compared() -> None:
    """A run with fewer zeros is no rival of the others of its target."""
    shares = {"wanda": 0.7, "magnitude": 0.7, "half": 0.5}
    results = Results([row(method, "70 %", 9, sparsity=share) for method, share in shares.items()])
    assert [[v.name for v in group] for group in results.groups()] == [["wanda", "magnitude"]]


def test_paths_are_shortened_unless_ambiguous() -> None:
    """A text is shown by its file name, with its window length."""
    assert [t.label for t in texts_of([row("dense", "dense", 4, source="some/where/stories.jsonl")])] == [
        "stories.jsonl (128)"
    ]
    labels = [t.label for t in texts_of([row("dense", "dense", 4, source=s) for s in ("a/x.txt", "b/x.txt")])]
    assert labels == ["a/x.txt (128)", "b/x.txt (128)"]


def test_names_inside_the_block_and_sparsity_before() -> None:
    """Block names of any family are cut off; without LLM-Barber nothing is known about a before."""
    layer = LayerOutcome(3, "transformer.h.3.mlp.experts.3.c_fc", 100, 56, notes={"grown": 4, "dropped": 10})
    assert layer.short_name == "mlp.experts.3.c_fc"
    assert LayerOutcome(0, "odd", 4, 2).short_name == "odd"
    assert layer.sparsity_before == 0.5
    assert LayerOutcome(0, "x.0.y", 4, 2).sparsity_before is None
