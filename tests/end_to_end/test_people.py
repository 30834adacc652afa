"""What people see: help without torch, silence where asked for, plain lines where there is no terminal, tables,
`inspect`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.cli.main import main
from end_to_end.conftest import Run
from end_to_end.tiny import BLOCKS, SEQLEN, Texts, flags, run_classic, transformers_log

HEAVY = ("torch", "transformers", "datasets", "safetensors", "numpy", "matplotlib")


def test_help_imports_nothing_heavy() -> None:
    """Which is what makes it quick."""
    program = (
        "import sys\nfrom autoprune.cli.main import classic, main\nfor call, words in ((classic, ['--help']), (main,"
        " ['--help']), (main, ['prune', '--help']), (main, ['--version'])):\n    try:\n        call(words)\n   "
        f" except SystemExit as end:\n        assert end.code == 0\nsys.exit(', '.join(name for name in {HEAVY!r} if"
        " name in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--sparsity_ratio" in result.stdout


def test_bad_flags_are_refused_without_torch() -> None:
    program = (
        "import sys\nfrom autoprune.cli.main import classic\n"
        "assert classic(['--model', 'demo', '--sparsity_ratio', '1.5']) == 2\nassert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "outside [0, 1)" in result.stderr


def test_quiet_prints_nothing(run: Run, tiny: Path, tmp_path: Path) -> None:
    for i, options in enumerate(({}, {"prune_method": "magnitude", "delete": True}, {"sparsity_ratio": 0})):
        with transformers_log() as said:
            answer = run(tiny, quiet=True, save_model=tmp_path / f"out{i}", save_ppl=tmp_path / "ppl", **options)
        assert (answer.out, answer.err, said) == ("", "", [])


def test_quiet_still_reports_errors(
    capsys: pytest.CaptureFixture[str], tiny: Path, texts: Texts, tmp_path: Path
) -> None:
    answer = run_classic(capsys, flags(tiny, texts, quiet=True, seqlen=1000, save_ppl=tmp_path / "ppl"))
    assert answer.status == 2
    assert answer.err.startswith("error: --seqlen 1000")
    assert answer.err.count("\n") == 1


def test_plain_lines_without_a_terminal(run: Run, tiny: Path, tmp_path: Path) -> None:
    answer = run(tiny, save_model=tmp_path / "out", save_ppl=tmp_path / "ppl")
    lines = answer.err.splitlines()
    assert "\x1b" not in answer.err + answer.out
    assert "\r" not in answer.err
    blocks = [line for line in lines if line.startswith("block ")]
    assert [line.split(":")[0] for line in blocks] == [f"block {i + 1}/{BLOCKS}" for i in range(BLOCKS)]
    assert all("7 layers pruned" in line and "s left" in line for line in blocks)
    expected = [
        "calibration data calibration.txt",
        "evaluation data heldout.txt",
        "checking weights",
        "pruning",
        "writing",
        "perplexity heldout.txt",
    ]
    assert [line for line in lines if line in expected] == expected


def test_tables_fit_a_pipe(run: Run, tiny: Path, tmp_path: Path) -> None:
    out = run(
        tiny,
        save_model=tmp_path / "out",
        save_ppl=tmp_path / "ppl",
        prune_barber=True,
        prune_granularity="layer",
        threshold=0.3,
    ).out
    for part in (
        "What was pruned",
        "What was exchanged",
        "self_attn",
        "mlp",
        "Perplexity, lower is better",
        "wanda+barber",
        "50.00 %",
    ):
        assert part in out
    assert f"checkpoint: {tmp_path / 'out'}\n" in out
    assert f"perplexity: {tmp_path / 'ppl'}\n" in out
    assert "…" not in out


def test_other_readings_of_n_m_are_said(run: Run, tiny: Path) -> None:
    assert (
        "1:4: at most 1 of every 4 weights stay non-zero (75% sparse)"
        in run(tiny, sparsity_type="1:4", sparsity_ratio=None).err
    )
    assert "stay non-zero" not in run(tiny, sparsity_type="2:4", sparsity_ratio=None).err


def test_magnitude_says_that_it_read_no_data(run: Run, tiny: Path, texts: Texts) -> None:
    answer = run(tiny, prune_method="magnitude", calibration_data="c4")
    assert "layer errors were not measured (--layer_errors measures them)" in answer.err
    assert "not measured" not in run(tiny, prune_method="magnitude", layer_errors=True).err


@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_inspect_shows_structure_and_cost(capsys: pytest.CaptureFixture[str], tiny: Path, model: str) -> None:
    capsys.readouterr()
    assert main(["inspect", str(tiny) if model == "tiny" else model, "--seqlen", str(SEQLEN)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d blocks \(model.layers\), [\d,]+ parameters", out)
    assert model == "demo" or f"{BLOCKS} blocks" in out
    for part in (
        "self_attn.q_proj",
        "k_proj, v_proj",
        "mlp.down_proj",
        "0-",
        "coverage: 9",
        "% of the block parameters",
    ):
        assert part in out, part
    for method in ("magnitude", "wanda", "sparsegpt", "wanda+barber"):
        assert any(line.startswith(method) and "GiB" in line for line in out.splitlines()), method


def test_inspect_prices_the_steps_that_are_asked_for(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    for words, label in (
        (["--effort", "low"], "wanda+refit"),
        (["--steps", "wanda,reconstruct", "--epochs", "6"], "wanda+reconstruct"),
    ):
        assert main(["inspect", str(tiny), "--seqlen", str(SEQLEN), *words]) == 0
        assert any(line.startswith(label) and "GiB" in line for line in capsys.readouterr().out.splitlines())


def test_eval_command(capsys: pytest.CaptureFixture[str], tiny: Path, texts: Texts, run: Run) -> None:
    capsys.readouterr()
    assert main(["eval", str(tiny), "--eval_data", str(texts.heldout), "--seqlen", str(SEQLEN)]) == 0
    assert untimed(capsys.readouterr().out, 5) == untimed(run(tiny, sparsity_ratio=0).out, 5)


def test_prune_command_is_main_py(capsys: pytest.CaptureFixture[str], tiny: Path, texts: Texts, run: Run) -> None:
    expected = run(tiny).out
    assert main(["prune", *flags(tiny, texts)]) == 0
    assert untimed(capsys.readouterr().out, 6) == untimed(expected, 6)


def untimed(out: str, words: int) -> list[str]:
    """Without what the run took: the last line, and behind so many words the last columns of the table's last line."""
    *told, row, took = out.rstrip().splitlines()
    assert re.fullmatch(r"took [\d.]+ s \(.+\), peak memory [\d,]+ MiB", took)
    return [*(line.rstrip() for line in told if set(line) != {"─"}), *row.split()[:words]]


def test_main_py_in_a_process_of_its_own(repository_root: Path, tiny: Path, texts: Texts, tmp_path: Path) -> None:
    words = flags(tiny, texts, prune_method="magnitude", sparsity_type="2:4", save_model=tmp_path / "out")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(repository_root / "main.py"), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/autoprune.json").is_file()
    assert not [line for line in result.stderr.splitlines() if "arning" in line]
