"""RIA by hand, weight by weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.core.saliency import ria_score


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_weight_by_the_formula(rows: int, features: int, seed: int, power: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-2, 3, (rows, features), generator=generator).float()  # dead rows and columns among them
    norm = torch.rand(features, generator=generator)
    found, sizes = ria_score(weight, norm, power), weight.abs().tolist()
    for i in range(rows):
        for j in range(features):
            column, row = sum(line[j] for line in sizes), sum(sizes[i])
            relative = (sizes[i][j] / column if column else 0) + (sizes[i][j] / row if row else 0)
            assert found[i, j].item() == pytest.approx(relative * norm[j].item() ** power, rel=1e-5)


def test_dead_rows_columns_and_inputs_score_zero() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 1.0]])
    assert ria_score(weight, torch.tensor([1.0, 4.0, 0.0])).tolist() == [[0.0, 0.0, 0.0], [0.0, (1 + 0.75) * 2, 0.0]]


def test_half_precision_sums_in_float32() -> None:
    """4096 ones: float16 stops counting at 2048."""
    score = ria_score(torch.ones(1, 4096, dtype=torch.float16), torch.ones(4096))
    assert score.dtype == torch.float32
    assert score[0, 0].item() == pytest.approx(1 + 1 / 4096)
