"""Starts runs of ``main.py``, or of ``autoprune shrink``, as processes of their own, at once, for torch is imported
already: ``python forks.py``.

Every line of its input is an order in JSON: flags, a file for what the run says, and when it kills itself: in the
middle of writing which safetensors file, or in which call of which method (0: never). It answers with the process's
number, and when that has ended with its exit status, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Forks:
    """The starter, seen from a test."""

    def __init__(self) -> None:
        source = str(Path(__file__).parents[2] / "src")
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout
        assert self._server.stdout.readline() == "ready\n"

    def start(self, flags: list[str], log: Path, die_in_save: int = 0, die_in_call: tuple[str, int] = ("", 0)) -> int:
        """Starts a run and returns its process number. ``die_in_call``: ``module:class.method``, and which call."""
        assert self._server.stdin and self._server.stdout
        order = {"flags": flags, "log": str(log), "die_in_save": die_in_save, "die_in_call": die_in_call}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """The exit status of the run started last."""
        assert self._server.stdout
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """Ends the starter."""
        self._server.communicate()


def serve() -> None:
    """Takes orders until its input ends."""
    import torch

    from autoprune.run import api  # noqa: F401  (imported once for all runs)

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(obey(order))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def obey(order: dict[str, Any]) -> int:
    """The run itself."""
    from autoprune.cli.main import classic, main

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["die_in_save"]:
        die_in_save(order["die_in_save"])
    if order["die_in_call"][1]:
        die_in_call(*order["die_in_call"])
    flags = order["flags"]
    status = main(flags) if flags[0] == "shrink" else classic(flags)
    sys.stdout.flush()
    return status


def die_in_save(number: int) -> None:
    """Lets the process kill itself when half of its n-th safetensors file is written."""
    from autoprune.storage import result

    real, calls = result.save_file, [0]

    def half(tensors: Any, path: Path, **named: Any) -> None:
        real(tensors, path, **named)
        calls[0] += 1
        if calls[0] == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    result.save_file = half  # type: ignore[assignment]


def die_in_call(where: str, number: int) -> None:
    """Lets the process kill itself at the n-th call of a method."""
    module, _, path = where.partition(":")
    owner, method = path.split(".")
    kind, calls = getattr(importlib.import_module(module), owner), [0]
    real = getattr(kind, method)

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(kind, method, counted)


if __name__ == "__main__":
    serve()
