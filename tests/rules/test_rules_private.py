"""What transformers does not promise is used in one file, so that a new version is looked at in one place."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src" / "autoprune"
ONE_FILE = SOURCES / "storage" / "internals.py"
PROMISED = {"transformers", "transformers.utils", "transformers.pytorch_utils"}


def test_private_interfaces_are_imported_in_one_file() -> None:
    for path in SOURCES.rglob("*.py"):
        found = {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "transformers"
        }
        assert path == ONE_FILE or found <= PROMISED, path
