"""What every test shares: offline, deterministic, few threads, and shapes in signatures checked."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook
from oracles import typechecker

ROOT = Path(__file__).resolve().parent.parent

# huggingface_hub and datasets read these when they are first imported, which is later than here.
# A test that wants the hub sets them otherwise for a subprocess of its own.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLCONFIGDIR": str(Path.home() / ".cache/matplotlib"),  # its list of fonts, wherever XDG_CACHE_HOME is
}.items():
    os.environ.setdefault(name, value)

# Checks `Float[Tensor, "out in"]` and friends at run time; must precede the first import of these packages.
# core/sparsity.py holds no tensors and has to judge whatever users typed, so it is called with wrong types on purpose.
CORE = [
    f"autoprune.core.{file.stem}"
    for file in (ROOT / "src/autoprune/core").glob("*.py")
    if file.stem not in ("__init__", "sparsity")
]
install_import_hook([*CORE, "autoprune.steps"], f"{typechecker.__name__}.check")

# The matrices of the tests are small: a second thread would only wait for the first, on a busy machine for long.
torch.set_num_threads(1)

hypothesis.settings.register_profile("autoprune", derandomize=True, deadline=None, max_examples=40, database=None)
hypothesis.settings.load_profile("autoprune")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test: what one has measured must not change another."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "autoprune"


# A developer's loop, `pytest -m "not slow"`: the mathematics, the recorded outputs of the papers' programs, the steps
# and the walk on tiny models, and the rules. All other tests are marked `slow`.
QUICK = (
    *(
        "rules/test_rules_*",
        "rules/test_docs.py*",
        "parity/*[[]llama-tiny-*",
        "unit/test_core_*",
        "unit/test_methods_*",
    ),
    *("unit/test_recipe.py*", "unit/test_cli_*", "models/test_protocol.py*", "models/test_loop.py*"),
    *("models/test_steps_more.py*", "models/test_example.py*"),
)
NOT_QUICK = ("unit/test_core_layer_error.py*", "models/test_steps_more.py*auto*", "models/test_steps_more.py*alps*")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is not in the developer's loop."""
    for item in items:
        place = f"{item.path.relative_to(ROOT / 'tests').as_posix()}::{item.name}"
        if not _is_one_of(place, QUICK) or _is_one_of(place, NOT_QUICK):
            item.add_marker(pytest.mark.slow)


def _is_one_of(place: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(place, pattern) for pattern in patterns)


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout that these tests belong to."""
    return ROOT


@pytest.fixture(scope="session")
def shared(repository_root: Path) -> Path:
    """The folder beside the checkout that holds models and texts which are not the project's own; skips without it."""
    folder = repository_root.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not here")
    return folder
