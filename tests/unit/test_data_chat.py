"""Conversations become texts by the tokenizer's chat template, and nothing else does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from data_fixtures import calibrate, evaluate, refused, word_ids, word_tokenizer
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from autoprune.data.chat import turns_of
from autoprune.data.hub import MIRROR_VARIABLE

TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
    "{{ {'user': 'w1', 'assistant': 'w2', 'system': 'w3'}[turn.role] }} {{ turn.content }} {% endfor %}"
)


def chatty() -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template that names the speaker before every turn, and with a start token of its own."""
    tokenizer = word_tokenizer(bos=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def talk(first: int, length: int) -> list[dict[str, str]]:
    """A question of three words, an answer of ``length``."""
    said = [" ".join(f"w{100 + (first + i) % 300}" for i in range(count)) for count in (3, length)]
    return [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]


def plainly(turns: list[dict[str, str]]) -> list[int]:
    """The same by hand."""
    marks = {"user": "w1", "assistant": "w2", "system": "w3"}
    return [i for turn in turns for i in word_ids(f"{marks[turn['role']]} {turn['content']}")]


TALKS = [talk(10 * i, 2 + i % 4) for i in range(12)]


def as_from_and_value(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def write(folder: Path, field: str, talks: list[Any], ending: str = "jsonl") -> Path:
    rows = [{"id": f"row {i}", field: turns} for i, turns in enumerate(talks)]
    path = folder / f"talks.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def packed(talks: list[list[dict[str, str]]], nsamples: int, seqlen: int, seed: int) -> list[list[int]]:
    """A conversation, and those behind it, until a window is full."""
    rng, drawn = random.Random(seed), []
    for _ in range(nsamples):
        at, ids = rng.randint(0, len(talks) - 1), list[int]()
        while len(ids) < seqlen:
            ids += plainly(talks[at % len(talks)])
            at += 1
        drawn.append(ids[:seqlen])
    return drawn


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_windows_begin_with_a_conversation(tmp_path: Path, field: str, ending: str) -> None:
    """With the template's tokens and no start token besides; of turns in either spelling."""
    talks = TALKS if field == "messages" else list(map(as_from_and_value, TALKS))
    got = calibrate(write(tmp_path, field, talks, ending), nsamples=9, seed=3, load_tokenizer=chatty)
    assert got.ids.tolist() == packed(TALKS, 9, 16, 3)
    assert got.provenance["field"] == field
    assert got.provenance["documents"] == len(TALKS)
    assert len(got.provenance["chat_template"]) == 64
    assert got.provenance["bos_token_added"] is False


def test_windows_longer_than_all_conversations(tmp_path: Path) -> None:
    """They go round."""
    path = write(tmp_path, "messages", TALKS[:2])
    got = calibrate(path, nsamples=2, seqlen=50, load_tokenizer=chatty)
    assert got.ids.tolist() == packed(TALKS[:2], 2, 50, 0)


def test_perplexity_of_conversations(tmp_path: Path) -> None:
    """All of them in their order, cut into windows."""
    got = evaluate(write(tmp_path, "messages", TALKS), load_tokenizer=chatty)
    whole = [i for turns in TALKS for i in plainly(turns)]
    assert got.ids.flatten().tolist() == whole[: len(whole) // 16 * 16]


def test_conversations_of_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mirror" / "owner" / "talks"
    folder.mkdir(parents=True)
    write(tmp_path, "messages", TALKS).rename(folder / "train.jsonl")
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options: dict[str, Any] = {"load_tokenizer": chatty, "datasets_cache_dir": str(tmp_path / "cache")}
    got = calibrate("owner/talks", nsamples=5, seed=1, **options)
    assert got.ids.tolist() == packed(TALKS, 5, 16, 1)


def test_content_in_parts(tmp_path: Path) -> None:
    """As models that also take pictures are talked to; only text can be read."""
    parts = [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w6"}]
    assert turns_of([{"role": "user", "content": parts}]) == [{"role": "user", "content": "w5 w6"}]
    with pytest.raises(ValueError, match=r"turn 1 has a part that is no text \(image\)"):
        turns_of([{"role": "user", "content": [{"type": "image"}]}])


def test_what_a_template_may_know_besides(tmp_path: Path) -> None:
    """Calls of tools and their names, of JSON lines as of parquet, which gives every turn every field; an empty turn
    is one.
    """
    call = [{"type": "function", "function": {"name": "w9", "arguments": "w8"}}]
    turns = [
        {"role": "system", "content": "w5"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "w6", "name": "w9"},
    ]
    template = (
        "{% for turn in messages %}{{ turn.content }}{% for call in turn.tool_calls %} {{ call.function.name }}"
        "{% endfor %}{{ ' ' + turn.name if turn.name is defined }} {% endfor %}"
    )
    tokenizer = chatty()
    tokenizer.chat_template = template
    for ending in ("jsonl", "parquet"):
        got = calibrate(
            write(tmp_path, "messages", [turns], ending), nsamples=1, seqlen=4, load_tokenizer=lambda: tokenizer
        )
        assert got.ids.tolist() == [word_ids("w5 w9 w6 w9")]
    with pytest.raises(ValueError, match="turn 1 has no role or no content of text"):
        turns_of([{"role": "assistant", "content": None}])


def test_a_template_that_adds_what_can_not_be_added(tmp_path: Path) -> None:
    tokenizer = chatty()
    tokenizer.chat_template = "{% for turn in messages %}{{ 'x' + 1 }}{% endfor %}"
    refused(
        lambda: evaluate(write(tmp_path, "messages", TALKS), load_tokenizer=lambda: tokenizer), "conversation 1 can't"
    )


def test_an_empty_conversation_at_the_head(tmp_path: Path) -> None:
    """Nothing tells that it is one but its name."""
    path = write(tmp_path, "messages", [[], TALKS[0]])
    refused(lambda: evaluate(path, load_tokenizer=chatty), "line 1", "`messages` holds no turns", "remove empty")


def test_without_a_template(tmp_path: Path) -> None:
    path = write(tmp_path, "messages", TALKS)
    refused(lambda: calibrate(path), "talks.jsonl", "conversations", "no chat template", "write them as texts")
    refused(lambda: evaluate(path), "no chat template")


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no turns": ([], ("line 2", "`messages`", "it holds no turns")),
    "no list": ("hello", ("line 2", "it holds no turns")),
    "no record": (["hello"], ("line 2", "turn 1 is no record")),
    "no content": ([{"role": "user"}], ("line 2", "turn 1 has no role or no content of text")),
    "half a character": ([{"role": "user", "content": "\ud83d"}], ("line 2", "lone surrogate")),
    "a role that the template refuses": (
        [{"role": "critic", "content": "w5"}],
        ("conversation 2 can't be rendered", "no critics"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_conversations(tmp_path: Path, case: str) -> None:
    """The line is named."""
    turns, expected = BAD[case]
    path = write(tmp_path, "messages", [TALKS[0], turns])
    refused(lambda: evaluate(path, load_tokenizer=chatty), "talks.jsonl", *expected)


def test_conversations_without_words(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = " "
    path = write(tmp_path, "messages", TALKS)
    refused(lambda: calibrate(path, load_tokenizer=lambda: tokenizer), "next to no tokens")


def test_two_fields_of_conversations(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"chosen": TALKS[0], "rejected": TALKS[1]}))
    refused(lambda: calibrate(path, load_tokenizer=chatty), "chosen, rejected", "keep the one that is meant")
