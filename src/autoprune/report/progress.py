"""Turns events into a progress bar with time left: on a terminal, in a notebook, or as plain lines elsewhere."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Drawn
from rich.table import Column
from rich.text import Text

from autoprune.errors import RecipeError
from autoprune.events import BlockResult, Emit, Event, Notice, Phase, Progress, Work, silent
from autoprune.recipe.checks import short

NARROW, WIDE = 70, 100  # columns of a terminal: below no bar, above a long one
CELL_EVERY = 0.25  # seconds between two looks of the line in a notebook
PLAIN_EVERY = 10.0  # seconds between lines of progress inside a block, without a terminal


@contextlib.contextmanager
def watching(*, quiet: bool) -> Iterator[Emit]:
    """What to call with every event: a bar on a terminal, lines elsewhere, nothing if ``quiet``. All on stderr."""
    if quiet:
        yield silent
        return
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield _Lines()
        return
    bar, names = (0 if console.width < NARROW else 10 if console.width < WIDE else 32), 20
    room = console.width - names - bar - (14 if bar == 0 else 24)  # beside spinner, clocks and spaces
    name = TextColumn("{task.description}", markup=False, table_column=_cut(names))
    note = TextColumn("{task.fields[note]}", markup=False, table_column=_cut(room))
    middle = (BarColumn(bar_width=bar), note, TimeElapsedColumn()) if bar else (note,)
    columns = (SpinnerColumn(), name, *middle, _TimeLeft())
    with Drawn(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)


@contextlib.contextmanager
def following(emit: Emit | None, *, quiet: bool) -> Iterator[Emit]:
    """What callers in Python see: what their own ``emit`` makes of it, else a line in a notebook or a bar on a
    terminal, else notices alone.

    Raises: RecipeError if ``emit`` can't be called.
    """
    if emit is not None and not callable(emit):
        raise RecipeError(
            f"emit is of type {type(emit).__name__} ({short(emit)}); give a function that takes an event, or leave it"
            " out"
        )
    if emit is not None or quiet:
        yield emit or silent
    elif display := _notebook():
        cell = _Cell(display)
        try:
            yield cell
        finally:
            cell.close()
    elif Console(stderr=True).is_terminal:
        with watching(quiet=False) as bar:
            yield bar
    else:
        yield _told


def _told(event: Event) -> None:
    """What a user should know is said where nobody watches, too, such as in a log."""
    if isinstance(event, Notice):
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more, or it is closed
            print(f"autoprune: {event.text}", file=sys.stderr, flush=True)


def _notebook() -> Any:
    """IPython's module for outputs if this process serves a notebook, else None."""
    shell = sys.modules.get("IPython")
    if shell is None or not hasattr(shell.get_ipython(), "kernel"):
        return None
    from IPython import display

    return display


def _cut(width: int) -> Column:
    """One line of at most so many letters."""
    return Column(no_wrap=True, overflow="ellipsis", max_width=width)


class _TimeLeft(ProgressColumn):
    """Time left: reckoned anew whenever something is done, from the share that is; counted down in between."""

    def __init__(self) -> None:
        super().__init__()
        self._key: tuple[object, ...] = ()
        self._left, self._at = 0.0, 0.0

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["since"]
        if not task.total or done <= 0 or not task.elapsed:
            return Text("left -:--", style="progress.remaining")
        if self._key != (key := (task.id, task.completed, task.total)):
            self._key, self._at = key, task.elapsed
            self._left = task.elapsed * (task.total - task.completed) / done
        left = max(0, int(self._left - (task.elapsed - self._at)))
        clock = f"{left // 60}:{left % 60:02d}"
        if left >= 3600:
            clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return Text(f"left {clock}", style="progress.remaining")


class _Bar:
    """One bar for the phase that is under way."""

    def __init__(self, progress: Drawn) -> None:
        self._progress = progress
        self._phase = Phase("starting")
        self._task = progress.add_task("starting", total=None, note="", since=0)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase):
            self._phase = event
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(event.name, total=event.total, note="", since=event.done)
        elif isinstance(event, Progress):
            note = f"block {event.block + 1}/{event.blocks} {event.phase} {event.done}/{event.total}"
            self._progress.update(self._task, completed=event.block, total=event.blocks, note=note)
        elif isinstance(event, Work):
            what = "" if event.phase == self._phase.name else f" {event.phase}"
            note = f"{event.done}/{event.total}{what}"
            self._progress.update(self._task, completed=event.done, total=event.total, note=note)
        elif isinstance(event, BlockResult):
            done = event.block + 1
            self._progress.update(
                self._task, completed=done, note=f"block {done}/{event.blocks}, {len(event.layers)} layers"
            )
        elif isinstance(event, Notice):
            self._progress.console.print(event.text, highlight=False)


class _Lines:
    """A line for every phase and every finished block, and now and then one inside a block."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Phase):
            self._start = now
            self._say(event.name)
        elif isinstance(event, BlockResult):
            done, spent = event.block + 1, now - self._start
            left = spent * (event.blocks - done) / done
            self._say(
                f"block {done}/{event.blocks}: {len(event.layers)} layers pruned, {spent:.0f} s, about {left:.0f} s"
                " left"
            )
        elif isinstance(event, Notice):
            self._say(event.text)
        elif now - self._last > PLAIN_EVERY:
            where = f", block {event.block + 1}/{event.blocks}" if isinstance(event, Progress) else ""
            self._say(f"  {event.phase} {event.done}/{event.total}{where}")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class _Cell:
    """One line under a notebook's cell, for the phase that is under way; it goes when all is done."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle = display.display(display.HTML(""), display_id=True)
        self._phase, self._left = "starting", ""
        self._start = self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            print(event.text, flush=True)
        elif isinstance(event, Phase):
            self._phase, self._left, self._start = event.name, "", time.monotonic()
            self._show(event.name)
        elif isinstance(event, BlockResult):
            done = event.block + 1
            left = (time.monotonic() - self._start) * (event.blocks - done) / done
            self._left = f", about {left:.0f} s left"
            self._show(f"{self._phase}: block {done}/{event.blocks} is done{self._left}")
        elif time.monotonic() - self._last > CELL_EVERY:
            where = f"block {event.block + 1}/{event.blocks} " if isinstance(event, Progress) else ""
            self._show(f"{self._phase}: {where}{event.phase} {event.done}/{event.total}{self._left}")

    def close(self) -> None:
        """Takes the line away."""
        self._handle.update(self._display.HTML(""))

    def _show(self, text: str) -> None:
        self._last = time.monotonic()
        self._handle.update(self._display.HTML(f"<code>{html.escape(text)}</code>"))
