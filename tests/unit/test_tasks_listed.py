"""``--tasks list`` says which tasks there are, whatever else the command line holds or lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from end_to_end.harness import write_task

from autoprune.cli.main import classic, main
from autoprune.evaluation import tasks
from autoprune.recipe.task_sets import SETS

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and the datasets library warn about themselves


def test_tasks_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without the harness's own, for to read these takes ten seconds."""
    listed = tasks.listed
    monkeypatch.setattr(tasks, "listed", lambda folder, stamp, defaults: listed(folder, stamp, defaults=False))
    for name in ("words_of_mine", "more_words"):
        write_task(tmp_path, name, ("acc",), 1.0)
    assert main(["eval", "--tasks", "list", "--tasks_path", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [*SETS, "more_words", "words_of_mine"]


def test_what_is_wrong_with_the_rest_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classic(["--tasks=list", "--tasks_path", str(tmp_path / "nowhere")]) == 2
    assert "there is no such directory" in capsys.readouterr().err
    assert main(["prune", "demo", "--tasks"]) == 2
    assert "--tasks" in capsys.readouterr().err
