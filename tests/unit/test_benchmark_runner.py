"""Cells run in processes of their own: finished ones stay, failed ones are recorded, and nothing survives its
starter.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from end_to_end.tiny import save_tiny, write_words

import autoprune
from autoprune.bench import runner
from autoprune.bench.grid import Grid, make_grid
from autoprune.bench.runner import CellResult, run_grid
from autoprune.cli.main import main
from autoprune.errors import AutoPruneError, OutputError, RecipeError
from autoprune.events import Event, Notice, Work

ROW = {"method": "m", "target": "50 %", "sparsity": 0.5, "perplexity": [], "settings": {}, "pruning": None}
COST = {"seconds": 1.0, "peak_bytes": 2}
PATIENCE = 120.0  # seconds: the machine may be busy


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny model and its texts as the keys of a grid."""
    place = tmp_path_factory.mktemp("bench")
    model, text = save_tiny(place / "tiny"), write_words(place / "words.txt", 400, 0)
    data = {"calibration_data": str(text), "eval_data": [str(text)], "nsamples": 4, "seqlen": 16}
    return {"models": [str(model)], "methods": ["magnitude", "wanda"], "targets": [0.5], "options": data}


def grid(count: int) -> Grid:
    """Cells that are never run as they are."""
    return make_grid({"models": ["nowhere"], "methods": ["wanda"], "targets": [0.5], "seeds": list(range(count))})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a line of Python in the place of the cell's program; ``options`` and ``result`` are its files, ``write``
    writes the outcome.
    """
    head = (
        "import json, pathlib, sys, time; options, result = map(pathlib.Path, sys.argv[1:]);"
        "seed = json.loads(options.read_text())['options'].get('seed');"
        f"write = lambda: result.write_text(json.dumps({{'error': None, 'row': {ROW!r}, 'cost': {COST!r}}}));"
    )

    def use(line: str) -> None:
        monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-S", "-c", head + line))

    return use


def test_results_come_in_the_order_of_the_grid_and_are_taken_over(stub: Callable[[str], None], tmp_path: Path) -> None:
    stub("time.sleep(0 if seed else 0.3); write()")
    said: list[Event] = []
    cells = grid(3)
    results = run_grid(cells, tmp_path, jobs=3, emit=said.append)
    assert [r.cell for r in results] == list(cells.cells)
    assert all(r.row and r.row.cost == r.cost and not r.error for r in results)
    assert {event.done for event in said if isinstance(event, Work)} == {0, 1, 2, 3, 4}
    assert {f"{i}/4" for i in range(1, 5)} == {e.text.split()[0] for e in said if isinstance(e, Notice)}
    stub("raise SystemExit('run again')")
    again: list[Event] = []
    assert run_grid(cells, tmp_path, emit=again.append) == results
    assert any(
        isinstance(event, Notice) and event.text.startswith("4 of 4 cells are finished already") for event in again
    )


def test_failures_are_recorded_and_tried_again(stub: Callable[[str], None], tmp_path: Path) -> None:
    """By their own word, by an exit status, by a signal, and by leaving nothing; the others run on."""
    bad = "result.write_text(json.dumps({'error': 'ModelError: gone', 'row': None, 'cost': None}))"
    ends = (
        f"{bad} if seed == 0 else sys.exit('last words') if seed == 1 else os.kill(os.getpid(), 9) if seed == 2 else"
        " write() if seed == 3 else 0"
    )
    stub(f"import os; {ends}")
    results = run_grid(grid(4), tmp_path)
    errors = [r.error or "" for r in results]
    assert "exit status 0: no message" in errors[0]
    assert errors[1] == "ModelError: gone"
    assert "exit status 1: last words" in errors[2]
    assert "exit status -9" in errors[3]
    assert results[4].row is not None
    stub("write()")
    assert all(r.row and not r.error for r in run_grid(grid(4), tmp_path))
    assert not list((tmp_path / "cells").glob("*.log"))


@pytest.mark.parametrize("left", ["", "{", "[]", '{"error": null}'])
def test_result_that_can_not_be_read_is_made_anew(stub: Callable[[str], None], tmp_path: Path, left: str) -> None:
    stub("write()")
    cells = grid(1)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cells.cells[0].key}.json").write_text(left)
    assert all(r.row for r in run_grid(cells, tmp_path))


def test_one_run_at_a_time(stub: Callable[[str], None], tmp_path: Path) -> None:
    from filelock import FileLock

    stub("write()")
    with FileLock(tmp_path / "in-use.lock"), pytest.raises(OutputError, match="another bench run is at work there"):
        run_grid(grid(1), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run_grid(grid(1), tmp_path / "file")


def test_interruption_ends_the_cells_under_way(stub: Callable[[str], None], tmp_path: Path) -> None:
    """What waits is not begun, and no failure is recorded."""
    stub("write() if seed == 0 else time.sleep(600) if seed else write()")

    def interrupt(event: Event) -> None:
        if isinstance(event, Work) and event.done == 2:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid(4), tmp_path, jobs=2, emit=interrupt)
    assert time.monotonic() - start < PATIENCE
    assert len(list((tmp_path / "cells").glob("????????????????.json"))) == 2
    assert not psutil.Process().children()


def test_killed_run_goes_on_where_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    """``kill -9`` in the middle of real cells: their processes end, finished cells are not run again, the rest is."""
    program = f"from autoprune import benchmark; benchmark({options!r}, {str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", program])
    cells = make_grid(options).cells
    paths = [tmp_path / "cells" / f"{cell.key}.json" for cell in cells]
    wait_until(lambda: paths[0].is_file() and bool(psutil.Process(process.pid).children()))
    orphans = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE for orphan in orphans))
    finished = {path: path.stat().st_mtime_ns for path in paths if path.is_file()}
    assert 0 < len(finished) < len(paths)

    summary = autoprune.benchmark(options, tmp_path)
    assert summary.failed == []
    assert [row.method for row in summary.rows] == ["dense", "magnitude", "wanda"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    check_reports(summary.results, tmp_path)
    frame = summary.to_pandas()
    assert list(frame.method) == ["dense", "magnitude", "wanda"]
    assert (frame["words.txt (16)"] > 1).all()
    assert (frame.peak_bytes > 10_000_000).all()


def test_each_job_has_a_gpu_of_its_own(stub: Callable[[str], None], tmp_path: Path, monkeypatch: Any) -> None:
    """As many as there are; what the user sees is what is dealt out; one job leaves everything as it is."""
    stub(
        f"import os; time.sleep(0.2); options.with_suffix('.gpu').write_text(os.environ[{runner.DEVICES!r}]); write()"
    )
    monkeypatch.setenv(runner.DEVICES, "3,5")
    assert runner.visible_devices() == ["3", "5"]
    for jobs, expected in ((2, {"3", "5"}), (1, {"3,5"})):
        run_grid(grid(5), tmp_path / str(jobs), jobs=jobs)
        found = {path.read_text() for path in (tmp_path / str(jobs) / "cells").glob("*.gpu")}
        assert found == expected


def test_threads_of_a_cell(stub: Callable[[str], None], tmp_path: Path, monkeypatch: Any) -> None:
    """Its share of the cores that the run may use; what the user wishes holds for every cell."""
    stub("import os; options.with_suffix('.threads').write_text(os.environ['OMP_NUM_THREADS']); write()")
    monkeypatch.setattr(runner, "available_cores", lambda: 6)
    for wish, jobs, expected in ((None, 2, "3"), (None, 8, "1"), ("5", 2, "5")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if wish:
            monkeypatch.setenv("OMP_NUM_THREADS", wish)
        place = tmp_path / f"{wish} {jobs}"
        run_grid(grid(1), place, jobs=jobs)
        assert {path.read_text() for path in (place / "cells").glob("*.threads")} == {expected}


def test_available_cores_are_those_of_the_process() -> None:
    """A process that was bound to one core has one."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to a core")
    program = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); " + (
        "from autoprune.bench.runner import available_cores; print(available_cores())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "1"


def test_a_finished_cell_ends_cleanly_while_its_starter_waits(options: dict[str, Any], tmp_path: Path) -> None:
    """Exit status 0, no abort of the thread that waits on standard input; when that closes, the cell ends."""
    given, result = tmp_path / "options.json", tmp_path / "result.json"
    dense = {**options["options"], "model": options["models"][0], "sparsity_ratio": 0.0}
    given.write_text(json.dumps({"name": "x", "options": dense}))
    command = [*runner.PROGRAM, str(given), str(result)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.wait(timeout=PATIENCE) == 0
    assert process.stdin is not None
    process.stdin.close()
    about = json.loads(result.read_text())["row"]["about"]
    assert about["parameters"] > 0
    assert (about["device"], "torch" in about["versions"], about["date"][:2]) == ("cpu", True, "20")
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": ["wanda", "vanda"]}, "cell tiny vanda 0.5 seed 0: --steps 'vanda' is unknown"),
        ({"models": ["./nowhere"]}, "cell nowhere dense: --model ./nowhere: there is no such directory"),
        ({"models": [str(Path(__file__).parent)]}, "cell unit dense: "),  # a directory, and no model in it
        ({"options": {"memory": "much"}}, "cell tiny dense: --memory"),
        ({"options": {"eval_data": ["gone.txt"]}}, "cell tiny dense: --eval_data gone.txt: no such file"),
        ({"options": {"calibration_data": "gone.txt", "eval_data": ["demo"]}}, "--calibration_data gone.txt: no such"),
    ],
)
def test_the_whole_grid_is_checked_first(
    options: dict[str, Any], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """Nothing has begun when something is missing."""
    with pytest.raises(AutoPruneError, match=re.escape(says)):
        autoprune.benchmark({**options, **change}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def check_reports(results: tuple[CellResult, ...], directory: Path) -> None:
    """Every report is there; phases are measured; windows were cut once, and the dense model measured once."""
    assert {path.name for path in directory.glob("results.*")} == {
        "results.json",
        "results.csv",
        "results.md",
        "results.tex",
    }
    assert "wanda" in (directory / "report.html").read_text()
    for result in results:
        assert result.cost is not None
        assert sum(result.cost.phases.values()) == pytest.approx(result.cost.seconds, rel=0.1)
    assert results[2].cost is not None
    assert {"pruning", "perplexity words.txt"} <= set(results[2].cost.phases)
    assert len(list((directory / "shared").glob("windows-*"))) == 2
    assert len(list((directory / "shared").glob("dense-*"))) == 1


def wait_until(done: Callable[[], bool]) -> None:
    """Looks again and again."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < PATIENCE, "waited in vain"
        time.sleep(0.02)


def test_command_line(stub: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 and the reason if a cell failed; 2 if the grid is none."""
    file = tmp_path / "grid.toml"
    data = 'options = {eval_data = ["demo"], calibration_data = "demo"}'
    file.write_text(f'models = ["demo"]\nmethods = ["wanda"]\ntargets = [0.5]\n{data}\n')
    stub("sys.exit('no luck') if seed is None else write()")
    arguments = ["bench", str(file), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--jobs", "2"]) == 1
    assert "FAILED demo dense: exit status 1: no luck" in capsys.readouterr().out
    stub("write()")
    assert main(arguments) == 0
    capsys.readouterr()
    assert json.loads((tmp_path / "out/results.json").read_text())[0]["cell"] == "demo dense"
    assert main(["bench", str(tmp_path / "none.toml")]) == 2
    assert "there is no such grid file" in capsys.readouterr().err
    assert main([*arguments, "--jobs", "0"]) == 2
    with pytest.raises(RecipeError, match="--jobs 0"):
        autoprune.benchmark({}, jobs=0)
