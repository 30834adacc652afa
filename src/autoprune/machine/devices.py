"""Which device a process runs its blocks on."""

from __future__ import annotations

import torch

from autoprune.errors import RecipeError
from autoprune.machine.launch import launched


def choose_device(word: str) -> torch.device:
    """The device that blocks run on; of several processes on a machine with several GPUs, each has its own.

    Raises: RecipeError if it is unknown or absent.
    """
    here = launched()
    if word == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None or accelerator.type != "cuda":
            return accelerator or torch.device("cpu")
        word = f"cuda:{here.local_rank}" if here else "cuda:0"
    elif here and word.partition(":")[0] == "cuda":
        if word != "cuda":
            raise RecipeError(
                f"--device {word!r} would put all processes on one GPU; leave it out, then each takes that of its"
                " LOCAL_RANK"
            )
        word = f"cuda:{here.local_rank}"
    try:
        device = torch.device(word)
        torch.empty(1, device=device).item()
        if here and device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL asks for it
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"--device {word!r} can't be used here ({str(error).splitlines()[0]}); give cpu, cuda, cuda:N or mps, or"
            " leave it out"
        ) from error
    return device
