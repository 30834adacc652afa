"""Which types of GGUF files keep zeros: docs/what-it-buys.md says what this shows.

The package quantises in Python to some types. For the others blocks are built and dequantised: whatever their scales,
either each part of a block has a code that stands for exactly 0, or hardly any has one unless its offset is 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

KEEP = {"BF16", "Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q3_K"}
LOSE = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
BY_CODES = {"Q6_K", "Q3_K", "Q2_K", "Q4_K", "Q5_K"}  # which the package does not quantise
BLOCKS, WEIGHTS = 200, 256
Array = np.ndarray[Any, Any]


def kind(name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


def half_zeros() -> Array:
    """Random weights, every other pair of them zero, as at 2:4."""
    weights = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    weights.reshape(-1, 4)[:, ::2] = 0
    return weights


@pytest.mark.parametrize("name", sorted((KEEP | LOSE) - BY_CODES))
def test_quantised_and_back(name: str) -> None:
    weights = half_zeros()
    back = gguf.quants.dequantize(gguf.quants.quantize(weights, kind(name)), kind(name))
    kept = np.mean(back[weights == 0] == 0)
    assert kept == 1 if name in KEEP else kept < 0.05
    assert np.abs(back - weights).max() < 0.5  # it is the same tensor, to its precision


def scales(rng: np.random.Generator) -> Array:
    """A float16 for each block as two bytes, of the size that scales have."""
    return rng.uniform(1e-4, 1e-2, size=(BLOCKS, 1)).astype(np.float16).view(np.uint8)


def filled(value: int, size: int) -> Array:
    return np.full((BLOCKS, size), value, np.uint8)


def noise(rng: np.random.Generator, size: int) -> Array:
    return rng.integers(0, 256, size=(BLOCKS, size), dtype=np.uint8)


def test_types_without_offset_have_a_code_for_zero() -> None:
    """Their parts' scales are random; only the codes are chosen: 0 of -32 to 31, and 0 of -4 to 3."""
    rng = np.random.default_rng(1)
    by_type = {
        "Q6_K": (filled(0x00, 128), filled(0xAA, 64), noise(rng, 16), scales(rng)),  # low 0, high 2: 32 - 32
        "Q3_K": (
            filled(0xFF, 32),
            filled(0x00, 64),
            noise(rng, 12),
            scales(rng),
        ),  # high bit set: nothing is taken off
    }
    for name, parts in by_type.items():
        back = gguf.quants.dequantize(np.concatenate(parts, axis=1), kind(name))
        assert back.shape == (BLOCKS, WEIGHTS)
        assert not back.any(), name
        other = gguf.quants.dequantize(np.concatenate(parts, axis=1) ^ lowest_bits(name), kind(name))
        assert np.count_nonzero(other) > 0.9 * other.size  # other codes under the same scales stand for no zero


def lowest_bits(name: str) -> Array:
    """The lowest bit of each code of a block, and nothing of its scales."""
    start, stop, bits, size = {"Q6_K": (0, 128, 0x11, 210), "Q3_K": (32, 96, 0x55, 110)}[name]
    found = np.zeros((1, size), np.uint8)
    found[:, start:stop] = bits
    return found


def every_code(name: str, packed: Array, first: Array, second: Array) -> Array:
    """What each code of each part of a block stands for: [codes, blocks, weights]."""
    found = []
    for code in range({"Q2_K": 4, "Q4_K": 16, "Q5_K": 32}[name]):
        if name == "Q2_K":
            parts = [packed, filled(code * 0b01010101, 64), first, second]
        elif name == "Q4_K":
            parts = [first, second, packed, filled(code * 0x11, 128)]
        else:
            parts = [first, second, packed, filled(0xFF if code & 16 else 0, 32), filled((code & 15) * 0x11, 128)]
        found.append(gguf.quants.dequantize(np.concatenate(parts, axis=1), kind(name)))
    return np.stack(found)


@pytest.mark.parametrize("name", sorted(LOSE & BY_CODES))
def test_types_with_an_offset_have_none_unless_it_is_zero(name: str) -> None:
    """A weight is ``scale * code - offset``; the scale and offset of each part are random."""
    rng = np.random.default_rng(2)
    packed = noise(rng, 16 if name == "Q2_K" else 12)
    first, second = scales(rng), scales(rng)
    values = every_code(name, packed, first, second)
    offset = -values[0]  # what code 0 stands for
    has_zero = (values == 0).any(0)
    with_offset = offset != 0
    assert np.mean(with_offset) > 0.8
    assert np.mean(has_zero[with_offset]) < 0.03  # where scale * code happens to meet the offset
    assert has_zero[~with_offset].all()
    no_offset = every_code(name, packed, first, np.zeros_like(second))
    assert (no_offset == 0).any(0).all()


def test_the_page_names_these_types(repository_root: Path) -> None:
    page = (repository_root / "docs" / "what-it-buys.md").read_text(encoding="utf-8")
    for word, names in (("kept", KEEP), ("lost", LOSE)):
        line = next(line for line in page.splitlines() if line.startswith(f"| {word} "))
        assert set(re.findall(r"\b(?:BF16|Q\d_[01K])\b", line)) == names
