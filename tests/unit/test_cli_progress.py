"""Events become a bar on a terminal, plain lines elsewhere, and nothing if asked for; all on stderr."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress as Drawn

from autoprune.events import BlockResult, Event, Notice, Phase, Progress, Work
from autoprune.report import progress
from autoprune.report.progress import following, watching
from autoprune.results.outcome import LayerOutcome

LAYERS = tuple(LayerOutcome(0, f"layer{i}", 4, 2) for i in range(7))


def story() -> Iterator[Event]:
    """What a run over two blocks emits."""
    yield Phase("pruning", 2)
    for block in range(2):
        for step in range(3):
            yield Progress(block, 2, "observe", step + 1, 3)
        yield BlockResult(block, 2, f"model.layers.{block}", LAYERS)
    yield Notice("1:4: at most 1 of every 4 weights stay non-zero [bold]")
    yield Phase("perplexity [x].txt", 2)
    yield Work("perplexity [x].txt", 1, 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda value: now.__setitem__(0, value)


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(quiet=True) as emit:
        for event in story():
            emit(event)
    assert capsys.readouterr() == ("", "")


def test_plain_lines(capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    with watching(quiet=False) as emit:
        for i, event in enumerate(story()):
            clock(i)
            emit(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pruning",
        "block 1/2: 7 layers pruned, 4 s, about 4 s left",
        "block 2/2: 7 layers pruned, 8 s, about 0 s left",
        "1:4: at most 1 of every 4 weights stay non-zero [bold]",
        "perplexity [x].txt",
    ]


def test_plain_lines_inside_a_long_block(capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    """Nobody waits for minutes without a sign, and nobody gets a line for every batch."""
    with watching(quiet=False) as emit:
        emit(Phase("pruning", 2))
        for i in range(100):
            clock(float(i))
            emit(Progress(0, 2, "observe", i + 1, 100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["pruning", "  observe 12/100, block 1/2"]
    assert 5 <= len(lines) <= 11


def test_callers_in_python_see_notices_alone_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Not even these if they want to be left alone, or listen themselves."""
    heard: list[Event] = []
    for emit, quiet in ((None, False), (None, True), (heard.append, False)):
        with following(emit, quiet=quiet) as told:
            for event in story():
                told(event)
    assert heard == list(story())
    notice = "autoprune: 1:4: at most 1 of every 4 weights stay non-zero [bold]\n"
    assert capsys.readouterr() == ("", notice)


def test_a_bar_for_callers_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True))
    with following(None, quiet=False) as told:
        assert isinstance(told, progress._Bar)


def test_a_line_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    """It shows what is under way and goes in the end; notices stay."""
    seen: list[str] = []
    handle = SimpleNamespace(update=seen.append)
    display = SimpleNamespace(HTML=str, display=lambda shown, display_id: handle)
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=True), display=display)
    monkeypatch.setitem(sys.modules, "IPython", shell)  # type: ignore[arg-type]
    with following(None, quiet=False) as told:
        for i, event in enumerate(story()):
            clock(i)
            told(event)
    assert seen[:2] == ["<code>pruning</code>", "<code>pruning: block 1/2 observe 1/3</code>"]
    assert "<code>pruning: block 1/2 is done, about 4 s left</code>" in seen
    assert seen[-2:] == ["<code>perplexity [x].txt: perplexity [x].txt 1/2</code>", ""]
    assert capsys.readouterr().out == "1:4: at most 1 of every 4 weights stay non-zero [bold]\n"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # type: ignore[arg-type]
    with following(None, quiet=False) as told:
        assert told is progress._told


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()

    def terminal(**options: object) -> Console:
        assert options.pop("stderr"), "progress belongs on stderr: stdout is for results"
        return Console(file=screen, force_terminal=True, width=120, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(progress, "Console", terminal)
    with watching(quiet=False) as emit:
        for event in story():
            emit(event)
            if isinstance(event, (BlockResult, Phase, Progress, Work)):
                emit._progress.refresh()  # type: ignore[attr-defined]
    shown = screen.getvalue()
    for part in (
        "pruning",
        "block 2/2 observe 3/3",
        "block 2/2, 7 layers",
        "left ",
        "stay non-zero [bold]",
        "perplexity [x].txt",
    ):
        assert part in shown, part


def test_time_left_never_rises_while_nothing_happens() -> None:
    """It is reckoned anew when something is done, and counted down in between; what an earlier run did is no pace."""
    now = [0.0]
    column = progress._TimeLeft()
    bar = Drawn(column, get_time=lambda: now[0])
    bar.add_task("cells", total=13, since=3)
    (task,) = bar.tasks

    def left() -> str:
        return column.render(task).plain

    assert left() == "left -:--"
    now[0] = 20.0
    bar.update(task.id, completed=5)
    assert left() == "left 1:20"
    for seconds, shown in ((50.0, "left 0:50"), (100.0, "left 0:00"), (200.0, "left 0:00")):
        now[0] = seconds
        assert left() == shown
    bar.update(task.id, completed=6)
    assert left() == "left 7:46"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_says_count_and_cell(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """On one line, whatever the width."""
    screen = io.StringIO()

    def terminal(**options: object) -> Console:
        options.pop("stderr")
        return Console(file=screen, force_terminal=True, width=width, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(progress, "Console", terminal)
    with watching(quiet=False) as emit:
        emit(Phase("cells", 13, done=2))
        emit(Work("demo sparsegpt+barber layer 0.1, update kept 0.5 seed 0", 3, 13))
        emit._progress.refresh()  # type: ignore[attr-defined]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if "cells" in line]
    assert any("3/13 demo" in line for line in lines)
    assert all(len(line.rstrip()) <= width for line in lines)
