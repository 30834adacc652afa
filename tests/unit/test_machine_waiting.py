"""Threads of OpenMP that wait for others sleep: the choice is made before torch is loaded, unless it is the user's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "wanted"), [(None, "passive"), ("active", "active")])
def test_wait_policy(given: str | None, wanted: str) -> None:
    program = "import autoprune, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [wanted, "False"]
