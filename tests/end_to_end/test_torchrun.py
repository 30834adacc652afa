"""Several processes under torchrun: results of one process, shares of the work, and what happens when one of them
dies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from end_to_end.rank_program import COMMON, SAMPLES, WAYS, ways
from end_to_end.tiny import BLOCKS, Texts, contents, flags, run_classic, tensors

PROGRAM = Path(__file__).with_name("rank_program.py")
ROOT = PROGRAM.parents[2]
PATIENCE = 200.0  # seconds, for a machine that has other things to do
EXACT = ("magnitude", "wanda")  # no sum is taken in another order
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
}


def torchrun(*command: object) -> subprocess.CompletedProcess[str]:
    """Two processes of a program on this machine."""
    arguments = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *map(str, command)]
    with subprocess.Popen(
        arguments, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            out, err = started.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            started.terminate()  # it takes its processes with it
            raise
    return subprocess.CompletedProcess(arguments, started.returncode, out, err)


@pytest.fixture(scope="module")
def alone(tiny: Path, texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    ways(str(tiny), str(texts.calibration), folder)
    return folder


@pytest.fixture(scope="module")
def together(tiny: Path, texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(PROGRAM, "ways", tiny, texts.calibration, folder)
    assert done.returncode == 0, done.stderr
    return folder


def notes(folder: Path, rank: int) -> dict[str, Any]:
    """What a process noted."""
    return dict(json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_make_what_one_makes(way: str, alone: Path, together: Path) -> None:
    one, two = contents(alone / way), contents(together / way)
    assert list(one) == list(two)
    if way in EXACT:
        assert one == two
        return
    a, b = tensors(alone / way), tensors(together / way)
    same = sum(int(((a[name] != 0) == (b[name] != 0)).sum()) for name in a)
    assert same / sum(tensor.numel() for tensor in a.values()) >= 0.999
    alike = [name for name in a if torch.equal(a[name] != 0, b[name] != 0)]
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5) for name in alike)


@pytest.mark.parametrize("way", WAYS)
def test_each_process_runs_half_of_the_samples_and_the_first_one_measures(
    way: str, alone: Path, together: Path
) -> None:
    single, first, second = notes(alone, 0)[way], notes(together, 0)[way], notes(together, 1)[way]
    assert first["samples"] == second["samples"] == single["samples"] / 2
    assert single["samples"] >= (
        0 if way == "magnitude" else SAMPLES * (2 * BLOCKS - 1)
    )  # observed in every block, advanced in all but the last
    assert first["measured"] == pytest.approx(single["measured"], rel=1e-4)
    assert len(first["measured"]) == 1
    assert second["measured"] == []
    assert first["sparsity"] == second["sparsity"] == single["sparsity"]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        (
            "crowded",
            "RecipeError: 2 processes can't share 1 calibration windows",
            "RecipeError: 2 processes can't share 1 calibration windows",
        ),
        ("device", "RecipeError: rank 1: --device 'cuda:7' ", "RecipeError: --device 'cuda:7' "),
        (
            "options",
            "RecipeError: rank 1 does not do what rank 0 does",
            "RecipeError: rank 1 does not do what rank 0 does",
        ),
        ("missing", "ModelError: rank 1: --model nowhere: ", "ModelError: --model nowhere: "),
        ("defect", "RankError: rank 1: the program failed there (TypeError: a defect)", "TypeError: a defect"),
    ],
)
def test_an_error_on_one_process_ends_all_of_them(name: str, first: str, second: str, together: Path) -> None:
    assert notes(together, 0)["errors"][name].startswith(first)
    assert notes(together, 1)["errors"][name].startswith(second)


def test_a_process_that_dies_ends_the_run_which_can_be_resumed(
    tiny: Path, texts: Texts, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(tiny, texts, **COMMON, save_model=tmp_path / "out")
    died = torchrun(PROGRAM, "fatal", *given)
    assert died.returncode != 0
    assert "error: rank 0: " in died.stderr
    assert "another process of th" in died.stderr
    assert "--resume goes on" in died.stderr
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.*/journal-block-*"))) == 1
    answer = run_classic(capsys, [*given, "--resume"])
    assert answer.status == 2
    assert "here.ranks was 2 and is 1" in answer.err
    resumed = torchrun(ROOT / "main.py", *given, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming: 1 of {BLOCKS} blocks are finished" in resumed.stderr
    assert resumed.stderr.count("pruning\n") == 1  # one of them speaks
    assert resumed.stdout.count("What was pruned") == 1
    assert contents(tmp_path / "out") == contents(alone / "wanda")


@pytest.mark.parametrize("command", [["inspect", "demo"], ["verify", "x"], ["bench", "x"], ["reproduce"]])
def test_work_of_one_process_is_refused(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoprune.cli.main import main

    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 2
    assert f"autoprune {command[0]} is the work of one process; start it without torchrun" in capsys.readouterr().err
