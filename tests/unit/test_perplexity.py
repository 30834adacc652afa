"""Perplexity by the papers' protocol, on logits that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.data.windows import Windows
from autoprune.errors import NumericsError
from autoprune.evaluation.perplexity import perplexity, window_losses
from autoprune.events import Event, Phase, Work, silent
from autoprune.model.stream import Place


@dataclass
class Numbered:
    index: int


@dataclass
class Anatomy:
    blocks: tuple[Numbered, ...] = (Numbered(0), Numbered(1))


@dataclass
class Oracle:
    """A resident store that gives the token that comes next the probability ``p``, and all others the same."""

    p: float
    vocabulary: int = 5
    resident: bool = True
    loaded: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    anatomy: Anatomy = field(default_factory=Anatomy)

    def load(self, index: int) -> None:
        self.loaded.append(index)

    def read_ahead(self, index: int) -> None:
        """Nothing is read."""

    def release(self, index: int) -> None:
        """A resident store keeps its blocks."""

    def logits(self, ids: Tensor) -> Tensor:
        self.batches.append(len(ids))
        logits = torch.full((*ids.shape, self.vocabulary), math.log((1 - self.p) / (self.vocabulary - 1)))
        following = ids.roll(-1, dims=1)  # what is said about the last token's successor must not count
        return logits.scatter(2, following[..., None], math.log(self.p))


def windows(ids: Tensor, **provenance: Any) -> Windows:
    return Windows(ids, provenance)


def measure(store: Any, held: Windows, batch: int = 2) -> Any:
    return perplexity(store, held, "text", batch=batch, place=Place(), emit=silent)


IDS = torch.randint(0, 5, (5, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_perplexity_is_one_over_the_probability_of_what_comes(p: float, batch: int) -> None:
    store = Oracle(p)
    result = measure(store, windows(IDS), batch)
    assert result.perplexity == pytest.approx(1 / p, rel=1e-6)
    assert (result.source, result.seqlen, result.windows, result.tokens) == ("text", 8, 5, 40)
    assert store.batches == [min(batch, 5 - i) for i in range(0, 5, batch)]
    assert store.loaded == [0, 1]


def test_mean_is_over_windows_in_double_precision() -> None:
    """Exponential of the mean of the windows' mean losses: not a mean of perplexities."""

    class Uneven(Oracle):
        def logits(self, ids: Tensor) -> Tensor:
            self.p = 0.5 if int(ids[0, 0]) == 0 else 0.25
            return super().logits(ids)

    ids = torch.zeros(3, 8, dtype=torch.int64)
    ids[1:, 0] = 1
    assert measure(Uneven(0.5), windows(ids), 1).perplexity == pytest.approx((2 * 4 * 4) ** (1 / 3), rel=1e-6)


def test_first_token_is_not_predicted_and_the_last_predicts_nothing() -> None:
    logits = torch.randn(2, 4, 5)
    ids = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    expected = [sum(-logits[w, t].log_softmax(0)[ids[w, t + 1]] for t in range(3)) / 3 for w in range(2)]
    assert torch.allclose(window_losses(logits, ids), torch.stack(expected))
    changed = logits.clone()
    changed[:, -1] = 100 * torch.randn(2, 5)
    assert torch.equal(window_losses(changed, ids), window_losses(logits, ids))


def test_losses_are_computed_in_float32() -> None:
    logits = torch.randn(1, 50, 5).bfloat16()
    ids = torch.randint(0, 5, (1, 50))
    assert torch.equal(window_losses(logits, ids), window_losses(logits.float(), ids))
    assert window_losses(logits, ids).dtype == torch.float32


def test_bits_per_byte() -> None:
    result = measure(Oracle(0.25), windows(IDS, utf8_bytes=70, kind="txt"))
    assert result.provenance["bits_per_byte"] == pytest.approx(2 * 5 * 7 / 70)
    assert result.provenance["loss"] == pytest.approx(math.log(4))
    assert result.provenance["kind"] == "txt"
    assert measure(Oracle(0.25), windows(IDS, utf8_bytes=None)).provenance["bits_per_byte"] is None


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_losses_that_are_no_numbers(value: str) -> None:
    class Broken(Oracle):
        def logits(self, ids: Tensor) -> Tensor:
            logits = super().logits(ids)
            logits[0, 3] = float("nan") if value == "nan" else -float("inf")
            if value == "inf":
                logits[0, 3, (int(ids[0, 4]) + 1) % 5] = 0.0
            return logits

    with pytest.raises(NumericsError, match=f"the loss on text is {value}.*--dtype float32"):
        measure(Broken(0.5), windows(IDS))


def test_hopeless_model_has_a_finite_perplexity() -> None:
    """JSON knows no infinity."""

    class Sure(Oracle):
        def logits(self, ids: Tensor) -> Tensor:
            return super().logits(ids).log_softmax(-1) * -1e4

    assert math.isfinite(measure(Sure(0.9), windows(IDS)).perplexity)


def test_progress() -> None:
    seen: list[Event] = []
    perplexity(Oracle(0.5), windows(IDS), "text", batch=2, place=Place(), emit=seen.append)  # type: ignore[arg-type]
    assert seen == [Phase("perplexity text", 3), *(Work("perplexity text", i + 1, 3) for i in range(3))]
