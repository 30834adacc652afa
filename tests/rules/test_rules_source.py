"""What the source may contain: sizes, silence, words, and no path of anyone's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

FILE_LINES, FUNCTION_LINES = 300, 50
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "autoprune"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = sorted(
    [*SOURCES, *(file for folder in ("scripts", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py"))]
)
PURE = [f for f in SOURCES if f.relative_to(PACKAGE).parts[0] in ("core", "steps")]
SPEAKING = ("cli", "report", "launch.py")  # the only packages that may print
NOISE = {"print", "open", "input", "breakpoint"}
DEVICE_MOVES = {"cuda", "cpu", "mps"}
# A path that starts at the root of a machine; not part of an address (https://host/home/…) or of a longer path.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~}-])/(?:work|home|root|Users|mnt/data|tmp/bash_jobs)/[\w.]|\b[A-Z]:\\\\?Users\\"
)


def long_functions(source: str) -> list[str]:
    """Functions of more than the allowed lines, signature and docstring counted."""
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]
    return [f"{name}: {length} lines" for name, length in lengths if length > FUNCTION_LINES]


def calls(source: str) -> set[str]:
    """Names of plain functions that are called, as in ``print(...)``."""
    return {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def device_moves(source: str) -> list[str]:
    """``tensor.cuda()`` and the like, and ``.to("cuda")``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if node.func.attr in DEVICE_MOVES or (node.func.attr == "to" and words):
                found.append(ast.unparse(node))
    return found


def variables(source: str) -> set[str]:
    """Names that are assigned or taken as arguments."""
    tree = list(ast.walk(ast.parse(source)))
    stored = {node.id for node in tree if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in tree if isinstance(node, ast.arg)}


def _ids(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", EVERYTHING, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= FILE_LINES
    assert long_functions(source) == []


@pytest.mark.parametrize("file", PURE, ids=_ids)
def test_mathematics_are_silent_and_stay_where_they_are(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert calls(source) & NOISE == set()
    assert device_moves(source) == []


@pytest.mark.parametrize("file", [f for f in SOURCES if f.relative_to(PACKAGE).parts[0] not in SPEAKING], ids=_ids)
def test_only_the_command_line_and_reports_print(file: Path) -> None:
    assert "print" not in calls(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", SOURCES, ids=_ids)
def test_nothing_is_called_mask(file: Path) -> None:
    """The pattern of survivors is called ``keep``: with a mask, nobody knows whether True stays or goes."""
    assert {"mask", "masks"} & variables(file.read_text(encoding="utf-8")) == set()


def test_no_path_of_a_machine_in_any_file(repository_root: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository_root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    found, read = [], 0
    for name in filter(None, listing.stdout.split("\0")):
        file = repository_root / name
        if not file.is_file() or file.suffix == ".safetensors":
            continue
        read += 1
        text = file.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{name}: …{text[max(0, m.start() - 20) : m.end() + 20]}…" for m in MACHINE_PATH.finditer(text)]
    assert read > 30
    assert found == []


def test_long_functions_are_seen() -> None:
    body = "    x = 1\n"
    assert long_functions("def f():\n" + body * FUNCTION_LINES) == ["f: 51 lines"]
    assert long_functions("def f():\n" + body * (FUNCTION_LINES - 1)) == []


@pytest.mark.parametrize("source", ["print(1)", "def f():\n    return open('x')"])
def test_noise_is_seen(source: str) -> None:
    assert calls(source) & NOISE


@pytest.mark.parametrize("source", ["x.cuda()", "x.cpu().sum()", "x.to('cuda')"])
def test_device_moves_are_seen(source: str) -> None:
    assert device_moves(source)


@pytest.mark.parametrize(
    "source", ["mask = 1", "def f(mask): ...", "for mask in x: ...", "lambda mask: 0", "mask, y = z"]
)
def test_masks_are_seen(source: str) -> None:
    assert "mask" in variables(source)


@pytest.mark.parametrize("path", ["work/x", "home/someone", "root/.cache"])
def test_machine_paths_are_seen(path: str) -> None:
    for before in ("", '"', "(", "cd ", "="):
        assert MACHINE_PATH.search(f"{before}/{path}")
    for harmless in ("https://example.org", "..", "~", "{folder}", "a"):
        assert not MACHINE_PATH.search(f"{harmless}/{path}")
