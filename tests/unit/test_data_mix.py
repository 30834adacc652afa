"""A mix of sources by shares: exact counts, each source's own windows, evenly spread, the same every time."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import refused, words
from end_to_end.tiny import save_tiny, write_words
from hypothesis import given
from hypothesis import strategies as st

from autoprune import prune
from autoprune.bench.grid import make_grid
from autoprune.data.mix import Part, counts, mixed, split_mix, words_of
from autoprune.data.windows import Windows
from autoprune.errors import DataError


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("c4:0.5,chat.jsonl:0.5", [("c4", 0.5), ("chat.jsonl", 0.5)]),
        ("c4:.25, chat.jsonl:.75", [("c4", 0.25), ("chat.jsonl", 0.75)]),
        ("owner/set:config:0.3,ptb:0.7", [("owner/set:config", 0.3), ("ptb", 0.7)]),
        ("a,b.txt:0.5,c:d.txt:0.5", [("a,b.txt", 0.5), ("c:d.txt", 0.5)]),
        ("a:1e-1,b:0.9", [("a", 0.1), ("b", 0.9)]),
    ],
)
def test_words_of_a_mix(word: str, parts: list[tuple[str, float]]) -> None:
    assert [(part.word, part.weight) for part in split_mix(word)] == parts
    assert words_of(word) == [name for name, _ in parts]


@pytest.mark.parametrize("word", ["c4", "owner/set:config", "c4:0.5", "dir/file.txt"])
def test_words_that_are_no_mix(word: str) -> None:
    assert split_mix(word) == ()
    assert words_of(word) == [word]


def test_a_file_is_no_mix(tmp_path: Path) -> None:
    """Whatever it is called."""
    path = tmp_path / "a:0.5,b:0.5"
    path.write_text("x")
    assert split_mix(str(path)) == ()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("c4,chat.jsonl", "'c4,chat.jsonl' names no source with its share"),
        ("c4:0.5,chat.jsonl", "'chat.jsonl' names no source with its share"),
        ("c4:0.5,", "0.5 is 0.5"),
        ("c4:0.5,ptb:0.4", "0.5 \\+ 0.4 is 0.9"),
        ("c4:1,ptb:0", "must be above 0"),
        ("c4:2,ptb:1", "2 \\+ 1 is 3"),
        ("c4:-0.5,ptb:1.5", "-0.5 \\+ 1.5 is 1"),
        ("c4:0.5,ptb:0.2,c4:0.3", "c4 is named twice"),
    ],
)
def test_shares_that_can_not_be(word: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        split_mix(word)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 300))
def test_counts_are_exact(shares: list[int], nsamples: int) -> None:
    """No source is a whole window away from its share, and all together are what was asked for."""
    parts = [Part(f"s{i}", share / sum(shares)) for i, share in enumerate(shares)]
    exact = [Fraction(share, sum(shares)) * nsamples for share in shares]
    try:
        found = counts(parts, nsamples)
    except DataError:
        assert min(exact) < 1
        return
    assert sum(found) == nsamples
    assert all(abs(count - wanted) < 1 for count, wanted in zip(found, exact, strict=True))


def test_what_is_left_over_goes_to_the_first_of_equals() -> None:
    halves = [Part("a", 0.5), Part("b", 0.5)]
    assert counts(halves, 7) == [4, 3]
    assert counts([Part("a", 0.1), Part("b", 0.9)], 10) == [1, 9]
    with pytest.raises(DataError, match=r"b with a share of 0\.01 gets none of 8 windows.*--nsamples"):
        counts([Part("a", 0.99), Part("b", 0.01)], 8)


def windows_of(value: int, count: int) -> Windows:
    facts = {"source": f"s{value}", "seed": 5, "distinct_windows": count}
    return Windows(torch.full((count, 4), value), facts)


def test_windows_are_spread() -> None:
    """Any quarter of them holds a quarter of each source, so what is held out is mixed too."""
    parts = [Part("x", 0.75), Part("y", 0.25)]
    made = mixed(parts, [windows_of(0, 12), windows_of(1, 4)])
    assert made.ids[:, 0].unfold(0, 4, 4).sum(1).tolist() == [1, 1, 1, 1]
    assert made.provenance["source"] == "s0:0.75,s1:0.25"
    assert (made.provenance["kind"], made.provenance["windows"], made.provenance["seed"]) == ("mix", 16, 5)
    assert [part["weight"] for part in made.provenance["parts"]] == [0.75, 0.25]
    assert made.provenance["fingerprint"] == made.fingerprint


def test_a_run_on_a_mix(tmp_path: Path) -> None:
    """Windows are those that each source gives alone; the record and the card name the mix; twice the same bits."""
    model = save_tiny(tmp_path / "model")
    one, other = write_words(tmp_path / "one, 1:2.txt", 200, 0), write_words(tmp_path / "other.txt", 200, 1)
    options: dict[str, Any] = {"prune_method": "wanda", "sparsity_ratio": 0.5, "nsamples": 6, "seqlen": 16}
    word = f"{one}:0.67,{other}:0.33"
    for name in ("first", "second"):
        prune(model, calibration_data=word, save_model=tmp_path / name, **options)
    records = [json.loads((tmp_path / name / "autoprune.json").read_text()) for name in ("first", "second")]
    assert records[0] == records[1]
    about = records[0]["calibration"]
    assert about["source"] == "one, 1:2.txt:0.67,other.txt:0.33"
    assert [part["windows"] for part in about["parts"]] == [4, 2]
    alone = prune(model, calibration_data=str(one), save_model=tmp_path / "alone", **{**options, "nsamples": 4})
    record = json.loads((tmp_path / "alone" / "autoprune.json").read_text())
    assert alone.summary is not None
    assert record["calibration"]["fingerprint"] == about["parts"][0]["fingerprint"]
    assert "one, 1:2.txt:0.67" in (tmp_path / "first" / "README.md").read_text()


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    """It is named, before anything is read."""
    model, text = save_tiny(tmp_path / "model"), write_words(tmp_path / "one.txt", 200, 0)
    options: dict[str, Any] = {"prune_method": "wanda", "sparsity_ratio": 0.5, "nsamples": 6, "seqlen": 16}
    with pytest.raises(DataError, match=r"--calibration_data .*gone\.txt: no such file"):
        prune(model, calibration_data=f"{text}:0.5,{tmp_path / 'gone.txt'}:0.5", **options)
    refused(lambda: prune(model, calibration_data=f"{text},{text}", **options), "a mix is written like")


def test_cells_of_a_grid_depend_on_the_files_of_a_mix(tmp_path: Path) -> None:
    """A changed file is another cell."""
    text = tmp_path / "a.txt"
    text.write_text(words(20))
    table = {"models": ["m"], "methods": ["wanda"], "targets": [0.5]}
    grid = {**table, "options": {"calibration_data": f"c4:0.5,{text}:0.5"}}
    before = make_grid(grid).cells[1].key
    assert make_grid(grid).cells[1].key == before
    text.write_text(words(30))
    assert make_grid(grid).cells[1].key != before
