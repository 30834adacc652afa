"""Divergence of two models' predictions: against a loop over every word, and the same in any slices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import divergence as oracle
from torch import Tensor

from autoprune.core import divergence
from autoprune.core.divergence import TokenShifts, first_scored, summarise, token_shifts
from autoprune.core.shift import PredictionShift
from autoprune.errors import DataError


def logits(tokens: int, vocabulary: int, seed: int, size: float = 3.0) -> Tensor:
    return size * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


def figures(shift: PredictionShift) -> dict[str, float]:
    """By the oracle's names."""
    spread = shift.kld_spread
    values = (spread.median, spread.p90, spread.p95, spread.p99, spread.p999, spread.maximum)
    return {
        "kld": shift.kld.mean,
        "kld error": shift.kld.error,
        **{f"kld {share}": value for share, value in zip((0.5, 0.9, 0.95, 0.99, 0.999, 1.0), values, strict=True)},
        "delta_p": shift.delta_p.mean,
        "delta_p rms": shift.delta_p_rms,
        "same_top": shift.same_top.mean,
        "log_ratio": shift.log_ratio.mean,
        "log_ratio error": shift.log_ratio.error,
    }


@given(st.integers(2, 12), st.integers(2, 700), st.integers(0, 1000), st.sampled_from([0.1, 3.0, 12.0]))
def test_same_as_word_by_word(tokens: int, vocabulary: int, seed: int, size: float) -> None:
    dense, pruned = logits(tokens, vocabulary, seed, size), logits(tokens, vocabulary, seed + 1, size)
    following = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    (found,) = token_shifts(dense, [pruned], following)
    wanted = [oracle.token(p, q, int(t)) for p, q, t in zip(dense.tolist(), pruned.tolist(), following, strict=True)]
    for value, of in zip(found.values, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(value.double(), torch.tensor(of).double(), rtol=1e-5, atol=1e-5)
    told = figures(summarise(found.view(1, -1), 2 * tokens))
    assert told == pytest.approx(oracle.figures(wanted), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_with_itself_is_exactly_the_same(dtype: torch.dtype) -> None:
    dense = logits(50, 777, 0).to(dtype)
    shift = summarise(token_shifts(dense, [dense.clone()], torch.arange(50))[0].view(5, 10), 20)
    assert set(figures(shift).items()) == {(name, 1.0 if name == "same_top" else 0.0) for name in figures(shift)}
    assert shift.dense_perplexity == shift.pruned_perplexity
    assert [bar.tokens for bar in shift.bars] == [50]


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned, following = logits(23, 600, 1), [logits(23, 600, 2), logits(23, 600, 3)], torch.arange(23)
    whole = token_shifts(dense, pruned, following)
    alone = [token_shifts(dense, [other], following)[0] for other in pruned]
    monkeypatch.setattr(divergence, "SLICE", 600 * 5)
    for sliced, before, single in zip(token_shifts(dense, pruned, following), whole, alone, strict=True):
        assert all(
            torch.equal(a, b) and torch.equal(a, c)
            for a, b, c in zip(sliced.values, before.values, single.values, strict=True)
        )


def test_a_large_vocabulary_costs_no_digits() -> None:
    """50,000 words of which some stand out: torch's own log_softmax would be wrong by 1e-5 and more."""
    dense = logits(40, 50_000, 4, 2.2)
    dense[:, :50] += 8
    pruned = logits(40, 50_000, 5, 1.5) + 0.3 * dense
    (found,) = token_shifts(dense, [pruned], torch.arange(40))
    p, q = dense.double().log_softmax(-1), pruned.double().log_softmax(-1)
    wanted = (p.exp() * (p - q) * (p > -16)).sum(-1)
    assert float((found.kld.double() - wanted).abs().max()) < 5e-6
    assert float((found.pruned_loss.double() + q.diagonal()).abs().max()) < 5e-6


def test_unlikely_words_are_left_out() -> None:
    """With ln p at -16 or below: they may be anything in the other model, even impossible."""
    dense = torch.tensor([[0.0, -15.9, -16.1, -math.inf]])
    pruned = torch.tensor([[0.0, -15.9, -math.inf, -math.inf]])
    (found,) = token_shifts(dense, [pruned], torch.tensor([0]))
    assert abs(float(found.kld)) < 1e-6
    (found,) = token_shifts(dense, [torch.tensor([[0.0, -math.inf, 0.0, 0.0]])], torch.tensor([0]))
    assert float(found.kld) == math.inf


@pytest.mark.parametrize("vocabulary", [3, 256, 512, 700, 1024])
def test_first_of_equals_is_the_top(vocabulary: int) -> None:
    """Half precision has many of them."""
    x = torch.randint(3, (64, vocabulary), generator=torch.Generator().manual_seed(0)).float()
    x[::2, -1] = 9.0
    assert torch.equal(divergence._argmax(x), x.argmax(-1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_show(bad: float) -> None:
    pruned = logits(4, 30, 1)
    pruned[2, 5] = bad
    (found,) = token_shifts(logits(4, 30, 0), [pruned], torch.arange(4))
    assert (
        torch.isfinite(found.pruned_loss).tolist() == torch.isfinite(found.kld).tolist() == [True, True, False, True]
    )
    assert bool(torch.isfinite(found.dense_loss).all())


def test_second_half_is_scored() -> None:
    assert [first_scored(n) for n in (2, 3, 4, 5, 512)] == [0, 1, 2, 2, 256]
    with pytest.raises(DataError, match=r"1 token .*--seqlen"):
        first_scored(1)


@pytest.mark.parametrize(("scored", "count"), [(3, 3), (8, 8), (21, 8)])
def test_stretches_of_the_window(scored: int, count: int) -> None:
    place = torch.arange(scored).float().expand(2, -1).contiguous()
    shift = summarise(TokenShifts(place + 2, place, place + 1, place > 0), 2 * scored + 1)
    assert len(shift.stretches) == count
    assert shift.stretches[0].start == scored + 1 and shift.stretches[-1].stop == 2 * scored + 1
    for a, b in zip(shift.stretches, shift.stretches[1:], strict=False):
        assert a.stop == b.start
    for s in shift.stretches:
        mean = (s.start + s.stop - 1) / 2 - scored - 1
        assert (s.dense_loss, s.pruned_loss, s.kld) == pytest.approx((mean, mean + 1, mean + 2))


@given(st.lists(st.floats(0, 50, width=32) | st.just(-1e-7), min_size=1, max_size=60))
def test_bars_count_every_token_once(values: list[float]) -> None:
    kld = torch.tensor(values)[None]
    bars = summarise(TokenShifts(kld, kld, kld, kld > 0), 4).bars
    assert sum(bar.tokens for bar in bars) == len(values)
    assert bars[0].tokens and bars[-1].tokens
    for bar in bars:
        assert bar.tokens == sum(bar.low <= max(v, 0.0) < bar.high for v in kld[0].tolist()) or bar is bars[-1]
