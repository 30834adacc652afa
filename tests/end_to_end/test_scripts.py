"""The papers' runs: every command of every script parses and says what the authors did, and one script runs from end
to end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from autoprune.cli.flags import Parser, add_flags, given
from autoprune.cli.main import classic
from autoprune.recipe.options import ZeroShotOptions
from autoprune.recipe.recipe import Recipe, recipe_from_flat

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    [*(ROOT / "scripts/unstructured_sparsity").glob("*.sh"), *(ROOT / "scripts/semi_structured_sparsity").glob("*.sh")]
)
MODELS = {
    "llama_7b": "huggyllama/llama-7b",
    "llama_13b": "huggyllama/llama-13b",
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
}
# What the authors of LLM-Barber chose: by first pass (a threshold of 0 is SparseGPT without its update), granularity
# and threshold.
USUAL = {("magnitude", "block", 0.1), ("sparsegpt", "block", 0.0), ("wanda", "output1", 0.01)}
AT_HALF = {name: USUAL | {("sparsegpt", "layer", 0.1)} for name in ("llama_7b", "llama_13b")}
AT_HALF |= {name: USUAL | {("sparsegpt", "input1", 0.001)} for name in ("llama2_7b", "llama3_8b")}
AT_HALF["llama2_13b"] = (USUAL - {("magnitude", "block", 0.1)}) | {
    ("magnitude", "layer", 0.1),
    ("sparsegpt", "layer", 0.1),
}
AT_N_M = {("magnitude", "output1", 0.1), ("wanda", "output1", 0.01)}


def commands(script: Path, place: Path, **variables: str) -> list[list[str]]:
    """Runs the script with a ``python`` that only notes its arguments; returns those of ``main.py``."""
    notes = place / "arguments"
    (place / "bin").mkdir(exist_ok=True)
    stub = place / "bin/python"
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{notes}"\nprintf "END\\n" >> "{notes}"\n')
    stub.chmod(0o755)
    notes.unlink(missing_ok=True)
    environment = {"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}", **variables}
    subprocess.run(["bash", str(script)], env=environment, cwd=place, check=True)
    calls = [call.splitlines() for call in notes.read_text().split("END\n") if call]
    assert all(Path(call[0]) == ROOT / "main.py" for call in calls)
    return [call[1:] for call in calls]


def recipe_of(arguments: list[str]) -> Recipe:
    """What ``main.py`` makes of them."""
    parser = Parser(prog="main.py", allow_abbrev=False)
    add_flags(parser)
    return recipe_from_flat(given(parser.parse_args(arguments)))


def test_one_script_for_each_model_of_the_paper() -> None:
    named = {
        folder: {s.stem for s in SCRIPTS if s.parent.name == folder}
        for folder in ("unstructured_sparsity", "semi_structured_sparsity")
    }
    assert named == {
        "unstructured_sparsity": set(MODELS),
        "semi_structured_sparsity": {"llama_7b", "llama2_7b", "llama3_8b"},
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: f"{s.parent.name}/{s.name}")
def test_every_command_is_a_recipe_of_the_authors(script: Path, tmp_path: Path) -> None:
    recipes = [recipe_of(arguments) for arguments in commands(script, tmp_path)]
    assert {recipe.model.model for recipe in recipes} == {MODELS[script.stem]}
    rebuilt = Counter(
        (r.steps[0], r.options_of("barber").prune_granularity, r.options_of("barber").threshold, str(r.target))
        for r in recipes
        if "barber" in r.steps
    )
    first = Counter((r.steps[0], str(r.target)) for r in recipes if r.target and "barber" not in r.steps)
    assert [r.target for r in recipes].count(None) == 1, "the dense model is measured once"
    targets = ["unstructured 0.5"] if script.parent.name == "unstructured_sparsity" else ["2:4", "4:8"]
    expected = AT_HALF[script.stem] if len(targets) == 1 else AT_N_M
    assert rebuilt == Counter((*settings, target) for settings in expected for target in targets)
    assert first == Counter((method, target) for method in ("magnitude", "sparsegpt", "wanda") for target in targets)
    defaults = Recipe()
    for recipe in recipes:
        assert (recipe.calibration, recipe.evaluation) == (defaults.calibration, defaults.evaluation)
        assert recipe.zeroshot == ZeroShotOptions(
            tasks=("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
        )
        assert recipe.output.delete
        places = [recipe.output.save_model, recipe.output.save_ppl, recipe.output.save_zeroshot]
        assert all(place and place.startswith("out/") for place in places)
    assert len({recipe.output.save_ppl for recipe in recipes}) == len(recipes)


def test_variables(tmp_path: Path) -> None:
    """Another model, another place, and flags for every command, also with spaces in the places."""
    variables = {"MODEL": "my models/seven", "OUT_ROOT": "my results", "EXTRA_ARGS": "--nsamples 32 --dtype float32"}
    for arguments in commands(SCRIPTS[0], tmp_path, **variables):
        recipe = recipe_of(arguments)
        assert recipe.model.model == "my models/seven"
        assert recipe.output.save_ppl is not None
        assert recipe.output.save_ppl.startswith("my results/")
        assert (recipe.calibration.nsamples, recipe.model.dtype) == (32, "float32")


def test_first_failure_ends_the_script(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/python"
    stub.write_text("#!/bin/sh\necho called\nexit 3\n")
    stub.chmod(0o755)
    ended = subprocess.run(
        ["bash", str(SCRIPTS[0])],
        env={"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (3, "called\n")


@pytest.mark.filterwarnings("ignore")  # lm-evaluation-harness and the datasets library warn about themselves
def test_one_script_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All commands of a script on the shipped model, in this process: tables are there, checkpoints are gone again."""
    pytest.importorskip("lm_eval")
    demo = ROOT / "src/autoprune/demo"
    (tmp_path / "heldout.txt").write_text(
        (demo / "heldout.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8"
    )
    task = tmp_path / "tasks"
    task.mkdir()
    (task / "verse.jsonl").write_text(
        '{"q": "And God said, Let there be", "c": ["light", "cheese"], "a": 0}\n' * 4, encoding="utf-8"
    )
    data = f"dataset_kwargs: {{data_files: {{validation: {task / 'verse.jsonl'}}}, cache_dir: {task / 'cache'}}}"
    form = 'doc_to_text: "{{q}}"\ndoc_to_target: a\ndoc_to_choice: c\nmetric_list: [{metric: acc}]'
    head = "task: verse\ndataset_path: json\noutput_type: multiple_choice\nvalidation_split: validation"
    (task / "verse.yaml").write_text(f"{head}\n{data}\n{form}\n", encoding="utf-8")
    extra = (
        f"--calibration_data demo --eval_data heldout.txt --nsamples 8 --seqlen 64 --tasks verse --tasks_path {task}"
        " --quiet"
    )
    monkeypatch.chdir(tmp_path)
    calls = commands(ROOT / "scripts/unstructured_sparsity/llama2_7b.sh", tmp_path, MODEL="demo", EXTRA_ARGS=extra)
    for arguments in calls:
        assert classic(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr() == ("", ""), "--quiet is not quiet"
    found = sorted(
        path.relative_to(tmp_path / "out/unstructured/llama2_7b").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    )
    assert len(found) == 4 * len(calls)
    assert not list((tmp_path / "out").rglob("model"))
    rows = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("log_*.json"))]
    assert sorted(row["method"] for row in rows) == [
        "dense",
        "magnitude",
        "magnitude+barber (block 0.1)",
        "sparsegpt",
        "sparsegpt+barber (block 0)",
        "sparsegpt+barber (input1 0.001)",
        "wanda",
        "wanda+barber (output1 0.01)",
    ]
    assert all(abs(row["sparsity"] - (0 if row["method"] == "dense" else 0.5)) < 1e-3 for row in rows)
    assert all(5 < row["perplexity"][0]["perplexity"] < 200 for row in rows)
    shutil.rmtree(tmp_path / "out")
