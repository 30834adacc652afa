"""The tiny model, its texts, and `main.py` in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from end_to_end.tiny import Answer, Texts, contents, flags, run_classic, save_tiny, write_words

Run = Callable[..., Answer]
Refuse = Callable[..., str]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny model. Nobody writes there."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """Words for calibration and for perplexity."""
    folder = tmp_path_factory.mktemp("texts")
    return Texts(write_words(folder / "calibration.txt", 600, 0), write_words(folder / "heldout.txt", 330, 1))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], texts: Texts) -> Run:
    """`main.py` on a model with the tiny texts; it must succeed."""

    def call(model: Path | str, **options: Any) -> Answer:
        answer = run_classic(capsys, flags(model, texts, **options))
        assert answer.status == 0, answer.err
        return answer

    return call


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], texts: Texts, tmp_path: Path) -> Refuse:
    """`main.py` on bad input: it must end with status 2 and a message that holds all that is expected, before any long
    work.
    """

    def call(model: Path | str, *expected: str, **options: Any) -> str:
        before = contents(tmp_path)
        places = {"save_model": tmp_path / "out", "save_ppl": tmp_path / "ppl"}
        answer = run_classic(capsys, flags(model, texts, **{**places, **options}))
        refused(answer, *expected)
        assert contents(tmp_path) == before, "something was written"
        return answer.err

    return call


def refused(answer: Answer, *expected: str) -> None:
    """One message that says it all, and no sign of work begun."""
    message = answer.err[answer.err.rfind("error: ") :]
    assert answer.status == 2, answer
    assert message.startswith("error: ")
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert not {"pruning", "writing"} & set(answer.err.splitlines()), "the pruning had begun"
    for part in expected:
        assert part in message, f"{part!r} is not in {message!r}"
