"""A user's script: it runs, its types are right, and a type checker finds what is wrong in another one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "python.py"
WRONG = """
import autoprune

result = autoprune.prune("demo", sparsity_ratio=0.5, calibration_data=["a text"], nsamples=4)
print(result.perplexity["demo"] + 1.0, result.model.generate, result.model.config)
autoprune.evaluate("demo", eval_data=None, tasks=["boolq"]).perplexity["demo"].is_integer()
autoprune.run(autoprune.Recipe.read("recipe.toml", seed=1), eval_data=["a text"]).to_pandas()
autoprune.prune("demo", nonsense=3)
autoprune.prune("demo", sparsity_ratio="oops")
autoprune.prune("demo", calibration_data=3)
autoprune.evaluate("demo", steps="wanda")
autoprune.compare("demo", "out", eval_data="demo", calibration_data="demo")
"""
# What they say of themselves takes mypy a minute to read, and `make check` reads it for the script.
LARGE = ("torch", "transformers", "pandas", "datasets", "rich", "matplotlib")


def test_the_script_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("users_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    recipes, ratios = script.main(nsamples=4, seqlen=64)
    assert list(recipes.index) == ["dense", *script.RECIPES]
    assert recipes.zeros.tolist() == [0.0, 0.5, 0.5, 0.5]
    assert (recipes.perplexity[1:] > recipes.perplexity["dense"]).all()
    assert list(ratios.columns) == [1, 2, 3, 4], "block 0 is left as it is"
    assert ratios[1]["mlp.up_proj"] == pytest.approx(0.6, abs=0.01)
    assert ratios[1]["self_attn.q_proj"] == pytest.approx(0.4, abs=0.01)
    assert "model.layers.1: 7 layers pruned" in capsys.readouterr().out


def test_types(tmp_path: Path) -> None:
    """Of the script nothing is to say; of the other exactly the lines that are wrong are named."""
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(dedent(WRONG), encoding="utf-8")
    settings = tmp_path / "mypy.ini"
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in LARGE)
    settings.write_text(f"[mypy]\nmypy_path = {ROOT / 'src'}\n{skipped}", encoding="utf-8")
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", "--allow-subclassing-any"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--config-file={settings}", "--no-incremental", SCRIPT, wrong],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert not [line for line in errors if "wrong.py" not in line], done.stdout
    found = sorted({int(line.split(":")[1]) for line in errors})
    told = dict(enumerate(WRONG.splitlines(), start=1))
    assert [told[number] for number in found] == WRONG.splitlines()[7:], done.stdout + done.stderr
