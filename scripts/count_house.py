#!/usr/bin/env python3
"""Counts what docs/decisions.md says of the code: lines, files, arrows between rooms, calls down to the formulas."""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WIDE = 120
CALLS = """
import sys
from pathlib import Path

package, argv = sys.argv[1], sys.argv[2:]
sys.path.insert(0, package)  # before an installed copy: it is this checkout that is counted
deepest = {}
wanted = {("wanda.py", "score"): "Wanda's score", ("exchange.py", "exchange"): "LLM-Barber's exchange"}


def watch(frame, event, argument):
    if event == "call":
        key = (Path(frame.f_code.co_filename).name, frame.f_code.co_name)
        if key in wanted and wanted[key] not in deepest:
            depth, here = 0, frame
            while here is not None:
                name = here.f_code.co_filename
                named = not here.f_code.co_name.startswith("<")
                depth += named and (name.startswith(package) or name.endswith("main.py"))
                here = here.f_back
            deepest[wanted[key]] = depth


from autoprune.cli import main

assert main.__file__.startswith(package), main.__file__
sys.setprofile(watch)
status = main.classic(argv)
sys.setprofile(None)
for name, depth in deepest.items():
    print(f"{name}: {depth}")
sys.exit(status)
"""


def functions(tree: ast.AST) -> Iterator[int]:
    """Lengths in lines of all functions and methods."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def arrows(package: Path) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    found = set()
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if name.startswith("autoprune.") and (other := name.split(".")[1]) != room and room != "__init__":
                found.add((room, other))
    return found


def circles(edges: set[tuple[str, str]]) -> set[str]:
    """Rooms from which arrows lead back to themselves, once those that lead nowhere are taken away."""
    left = set(edges)
    while ends := {b for _, b in left} - {a for a, _ in left}:
        left = {(a, b) for a, b in left if b not in ends}
    return {a for a, _ in left}


def calls(root: Path) -> str:
    """Frames of the program from the start to two formulas, on the model that the project ships."""
    flags = "--model demo --sparsity_ratio 0.5 --prune_barber --calibration_data demo --nsamples 2 --seqlen 32"
    flags += " --eval_data demo --quiet --save_ppl"
    program = [sys.executable, "-c", CALLS, str(root / "src"), *flags.split()]
    out = subprocess.check_output([*program, str(root / "out" / "count"), "--overwrite"], text=True, cwd=root)
    return out.strip()


def main() -> None:
    """Prints a line for every count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout to count")
    root = parser.parse_args().root
    package = root / "src" / "autoprune"
    sources = {file: file.read_text(encoding="utf-8") for file in sorted(package.rglob("*.py"))}
    lengths = [length for text in sources.values() for length in functions(ast.parse(text))]
    lines = [line for text in sources.values() for line in text.splitlines()]
    edges = arrows(package)
    largest = max(len(text.splitlines()) for text in sources.values())
    print(f"lines: {len(lines)}; files: {len(sources)}; largest file: {largest}")
    print(f"functions: {len(lengths)}; median lines: {statistics.median(lengths):g}; longest: {max(lengths)}")
    print(f"lines of {WIDE} columns and more: {sum(len(line) >= WIDE for line in lines)}")
    loose, ignored = sum(t.count("Any") for t in sources.values()), sum("type: ignore" in x for x in lines)
    print(f"Any: {loose}; type: ignore: {ignored}")
    print(f"arrows between rooms: {len(edges)}; rooms in circles: {', '.join(sorted(circles(edges))) or 'none'}")
    print(calls(root))


if __name__ == "__main__":
    main()
