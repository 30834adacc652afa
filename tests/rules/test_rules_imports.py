"""Who may import whom: the mathematics stay pure, packages look downwards only, and the front door opens without
torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from autoprune.steps.table import BUILT_IN

# cli -> bench -> run -> {evaluation, report, data} -> storage -> model -> recipe -> steps -> core -> the ground.
LEVELS = {
    "core": 0,
    "machine": 0,
    "results": 0,
    "steps": 1,
    "recipe": 1.5,
    "model": 2,
    "storage": 3,
    "data": 3,
    "evaluation": 4,
    "report": 4,
    "run": 5,
    "bench": 6,
    "cli": 7,
    "__main__": 7,
}
# Anyone may import these; "" is the package itself, for its version.
GROUND = {"errors", "events", "machine", "results"}
FREE = GROUND | {"core", ""}
MATHEMATICS = {"torch", "numpy", "jaxtyping", "__future__"}
UNSUITED = {
    "logging",
    "os",
    "io",
    "pathlib",
    "sys",
    "subprocess",
    "shutil",
    "tempfile",
    "warnings",
    "random",
    "socket",
    "urllib",
}
LIGHT = [
    "autoprune",
    "autoprune.recipe.recipe",
    "autoprune.errors",
    "autoprune.results.outcome",
    "autoprune.cli",
    "autoprune.cli.main",
]
# A paper's way to measure that is called as its method, and the word with which many options say "decide yourself".
COMMON_WORDS = {"alps", "auto"}
HEAVY = ("torch", "transformers", "datasets", "matplotlib")


def imported(source: str, package: str) -> Iterator[str]:
    """Full names of all modules that a source imports, wherever in it; ``package`` resolves relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ([f"autoprune.{alias.name}" for alias in node.names] if base == "autoprune" else [base])


def part(module: str) -> str:
    """``autoprune.model.layers`` -> ``model``;

    the package's own names (``__version__``, public functions) -> ``""``.
    """
    name = module.split(".")[1] if "." in module else ""
    return name if name in LEVELS or (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir() else ""


def level(name: str) -> int:
    """How high a part of the package stands; whatever is not listed stands beside the runs."""
    return LEVELS.get(name, LEVELS["run"])


def upward(name: str, imports: Iterator[str]) -> list[str]:
    """Imports that break the direction."""
    return [
        m
        for m in imports
        if m.split(".")[0] == "autoprune" and part(m) not in FREE | {name} and level(part(m)) > level(name)
    ]


def impure(imports: Iterator[str]) -> list[str]:
    """Imports that have no place in the mathematics."""
    return [m for m in imports if not _pure(m)]


def _pure(module: str) -> bool:
    top = module.split(".")[0]
    if top == "autoprune":
        return part(module) in {"core", "steps", "results", "errors"}
    return top in MATHEMATICS or (top in sys.stdlib_module_names and top not in UNSUITED)


PACKAGE = Path(__file__).resolve().parents[2] / "src" / "autoprune"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PURE = [f for f in SOURCES if f.relative_to(PACKAGE).parts[0] in ("core", "steps")]


def _name(file: Path) -> str:
    """The part of the package that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(file: Path) -> Iterator[str]:
    package = ".".join(["autoprune", *file.relative_to(PACKAGE).parent.parts])
    return imported(file.read_text(encoding="utf-8"), package)


def _ids(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", PURE, ids=_ids)
def test_mathematics_import_only_torch_and_each_other(file: Path) -> None:
    assert impure(_imports(file)) == []


@pytest.mark.parametrize("file", [f for f in SOURCES if f != PACKAGE / "__init__.py"], ids=_ids)
def test_imports_look_downwards(file: Path) -> None:
    """The package's __init__ is the front door, and opens the api."""
    name = _name(file)
    if name in GROUND:  # everyone imports them, so they may only stand on the ground
        assert {part(m) for m in _imports(file) if m.startswith("autoprune")} <= GROUND | {"core", ""}
    assert upward(name, _imports(file)) == []


def test_parts_of_one_level_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for file in SOURCES:
        if file != PACKAGE / "__init__.py":
            wanted = {part(m) for m in _imports(file) if m.startswith("autoprune")}
            edges.setdefault(_name(file), set()).update(wanted - {_name(file), ""})
    edges["core"] -= GROUND  # results hold what the mathematics found, whose errors are everyone's
    while leaves := [name for name, wanted in edges.items() if not wanted & set(edges)]:
        for name in leaves:
            del edges[name]
    assert edges == {}


@pytest.mark.parametrize("module", LIGHT)
def test_imports_without_torch(module: str) -> None:
    """What --help needs is quick to import: in a fresh interpreter none of the heavy packages comes along."""
    if find_spec(module.rpartition(".")[0] or module) is None or find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_rules_cover_something() -> None:
    assert {"core", "steps", "model", "storage"} <= {_name(file) for file in SOURCES}
    assert len(PURE) >= 12


@pytest.mark.parametrize(
    "source",
    ["import pandas", "from transformers import AutoConfig", "import logging", "from autoprune.model import layers"],
)
def test_impure_imports_are_seen(source: str) -> None:
    assert impure(imported(source, "autoprune.core"))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core", "from autoprune.steps import passes"),
        ("steps", "from autoprune.model.layers import Layer"),
        ("model", "def f():\n    from autoprune.storage import stores"),
        ("model", "from ..storage import stores"),
        ("storage", "from autoprune.run import api"),
        ("report", "import autoprune.cli.main"),
        ("run", "from autoprune.cli import main"),
    ],
)
def test_upward_imports_are_seen(name: str, source: str) -> None:
    assert upward(name, imported(source, f"autoprune.{name}"))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("steps", "from autoprune.core import exchange\nfrom autoprune.results.outcome import LayerOutcome"),
        (
            "storage",
            "from autoprune.model.anatomy import BlockAnatomy\nfrom autoprune import __version__\nimport json",
        ),
        ("evaluation", "from autoprune.data.windows import Windows"),
        ("cli", "from autoprune.run import api"),
    ],
)
def test_downward_imports_are_allowed(name: str, source: str) -> None:
    assert upward(name, imported(source, f"autoprune.{name}")) == []


WALK = PACKAGE / "model" / "walk.py"


@pytest.mark.parametrize("file", [f for f in SOURCES if f.relative_to(PACKAGE).parts[0] != "steps"], ids=_ids)
def test_no_file_outside_steps_knows_a_step(file: Path) -> None:
    """Neither by its name in a string, nor by importing its file; docstrings may tell of methods."""
    steps = {entry.where.partition(":")[0] for entry in BUILT_IN.values()}
    source = file.read_text(encoding="utf-8")
    assert not [m for m in _imports(file) if m in steps]
    words = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not {name for name in BUILT_IN if name in words} - COMMON_WORDS


@pytest.mark.parametrize("file", [f for f in SOURCES if f != WALK and _name(f) != "storage"], ids=_ids)
def test_only_the_walk_loads_and_releases_blocks(file: Path) -> None:
    calls = [n.func for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    methods = [(ast.unparse(f.value), f.attr) for f in calls if isinstance(f, ast.Attribute)]
    found = [m for m in methods if m[1] in ("load", "release", "load_stored") and m[0].rpartition(".")[2] == "store"]
    assert found == []
