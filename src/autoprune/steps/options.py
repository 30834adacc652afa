"""The options of the built-in steps: every field is a flag, a TOML key and an entry in the record. Imports no torch.

They lie here and not beside the formulas because ``--help`` shows them, and a formula's file imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from autoprune.core.sparsity import SemiStructured, Target
from autoprune.errors import RecipeError, unknown

ALLOCATIONS = ("uniform", "owl", "dlp", "divergence")
# How a smaller model is healed, and by which steps.
HEALINGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "rescale": (),
    "reconstruct": ("reconstruct",),
    "distill": ("reconstruct", "distill"),
}
HEALING = "reconstruct"  # unless another one is asked for
GRANULARITIES = ("block", "layer", "output1", "input1")
METRICS = ("WD", "W", "D")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16")


def option(default: Any = dataclasses.MISSING, help: str = "", **facts: Any) -> Any:
    """A dataclass field that is also a flag.

    ``facts`` ride in its metadata: ``choices`` and ``metavar`` for the help, and the bounds that a value is judged by,
    ``at_least``, ``fraction`` (in [0, 1]) and ``positive``. ``shown``: names of results always say it.
    """
    return dataclasses.field(default=default, metadata={"help": help, **facts})


@dataclass(frozen=True)
class NoOptions:
    """A step without hyper-parameters."""


@dataclass(frozen=True)
class RIAOptions:
    """Hyper-parameters of RIA (Plug-and-Play, ICLR 2024)."""

    ria_power: float = option(0.5, "ria: power of the input's norm in the score", positive=True)


@dataclass(frozen=True)
class SparseGPTOptions:
    """Hyper-parameters of SparseGPT (arXiv 2301.00774, algorithm 1)."""

    column_block: int = option(
        128, "sparsegpt: columns swept together before the lazy update", metavar="COLUMNS", at_least=1
    )
    damping: float = option(
        0.01, "sparsegpt: damping of the Hessian, as a fraction of its mean diagonal", positive=True
    )


@dataclass(frozen=True)
class BarberOptions:
    """Hyper-parameters of LLM-Barber (arXiv 2408.10631)."""

    prune_granularity: str = option(
        "output1", "LLM-Barber: which scores are compared with each other", choices=GRANULARITIES, shown=True
    )
    threshold: float = option(
        0.01, "LLM-Barber: fraction of the inverted pairs that is exchanged, in [0, 1]", fraction=True, shown=True
    )
    prune_metric: str = option("WD", "LLM-Barber: weight x gradient, weight alone, gradient alone", choices=METRICS)
    retain_reconstruction: bool = option(
        False, "LLM-Barber: keep the pruned model's weight values (SparseGPT's update) instead of the dense ones"
    )
    compute_dtype: str = option(
        "auto",
        "LLM-Barber: precision of its forward passes and gradients (sums are float32 anyway); auto = float32",
        choices=PRECISIONS,
    )

    def check(self, target: Target | None) -> None:
        """Raises: RecipeError if a granularity can't keep an N:M pattern."""
        if isinstance(target, SemiStructured) and self.prune_granularity != "output1":
            raise RecipeError(
                f"--prune_granularity {self.prune_granularity} can't keep {target}: only output1 exchanges weights"
                " inside N:M groups"
            )


@dataclass(frozen=True)
class MixedOptions:
    """The mixed target: layers are also to make up for what the blocks before them have changed."""

    mixed_share: float = option(
        0.5,
        "mixed: share of the correction for the inputs' error; 0 = the dense weights, 1 = all of it",
        fraction=True,
    )
    mixed_damping: float = option(
        0.01, "mixed: damping of the Gram, as a fraction of its mean diagonal", positive=True
    )


@dataclass(frozen=True)
class AllocateOptions:
    """How the zeros are shared out among the blocks, their total unchanged (arXiv 2310.05175, 2505.23807)."""

    allocation: str = option(
        "owl",
        "allocate: what says how dense a block stays; divergence prunes every block alone at two ratios and looks at"
        " the model's predictions, which takes as many forward passes of --divergence_samples as there are blocks, and"
        " twice as many streams of hidden states",
        choices=ALLOCATIONS,
        shown=True,
    )
    owl_factor: float = option(
        5.0, "allocate: a score is an outlier above so many times the block's mean", positive=True
    )
    owl_range: float = option(0.08, "allocate: how far owl may move a block's ratio; half of it all", fraction=True)
    dlp_range: float = option(0.15, "allocate: how far dlp may move a block's ratio; half of it all", fraction=True)
    divergence_range: float = option(
        0.1, "allocate: how far divergence may move a block's ratio up and down; it is measured there", at_least=0.001
    )
    divergence_samples: int = option(
        8, "allocate: calibration samples, the first ones, on which divergence is measured", metavar="N", at_least=1
    )

    def __post_init__(self) -> None:
        if self.allocation not in ALLOCATIONS:
            raise RecipeError(f"--allocation {unknown(self.allocation, ALLOCATIONS)}")

    def check(self, target: Target | None) -> None:
        """Raises: RecipeError at N:M, which fixes every group and leaves nothing to share out."""
        if target is not None and isinstance(target, SemiStructured):
            raise RecipeError(f"there is nothing to allocate at {target}; leave out the step allocate")


@dataclass(frozen=True)
class SwapsOptions:
    """Hyper-parameters of exchanges on the Gram (SparseSwaps, arXiv 2512.10922)."""

    swap_limit: int = option(100, "swaps: exchanges per output row at most", metavar="N", at_least=1)
    swap_candidates: int = option(
        32, "swaps: weights of each kind among which a row's best exchange is sought first", metavar="N", at_least=1
    )
    swap_protect: float = option(
        0.0,
        "swaps: share of the kept weights of a row, the largest by |W| ||x||, that is never dropped",
        fraction=True,
    )


@dataclass(frozen=True)
class RefitOptions:
    """Hyper-parameters of least squares on the kept weights (ALPS, arXiv 2406.07831, section 3.3)."""

    refit_damping: float = option(
        0.01, "refit: damping of the Gram, as a fraction of its mean diagonal", positive=True
    )
    refit_iterations: int = option(30, "refit: steps of conjugate gradients at most", metavar="N", at_least=1)


@dataclass(frozen=True)
class ALPSOptions:
    """Hyper-parameters of ALPS (arXiv 2406.07831)."""

    alps_damping: float = option(0.01, "alps: damping of the Gram, as a fraction of its mean diagonal", positive=True)
    alps_compare: str = option(
        "row", "alps: weights of a row are compared with each other, or all of a layer's", choices=("row", "layer")
    )


@dataclass(frozen=True)
class ADMMOptions:
    """Hyper-parameters of gradual ADMM (arXiv 2401.02938)."""

    admm_damping: float = option(0.1, "admm: damping of the Gram, as a fraction of its mean diagonal", positive=True)


@dataclass(frozen=True)
class ReconstructOptions:
    """Block reconstruction: kept weights, norms and biases are trained towards the dense block's output."""

    epochs: int = option(2, "reconstruct: times that all samples are gone through", metavar="N", at_least=1)
    learning_rate: float = option(
        0.002, "reconstruct: rate of Adam at its highest; several are tried with --rate_trials", positive=True
    )
    rate_trials: bool = option(
        False, "reconstruct: for each block also try half and twice the rate, for a quarter of the steps"
    )
    reconstruct_loss: str = option(
        "token",
        "reconstruct: error relative to the norm of every token's output, or to that of all of them together",
        choices=("token", "block"),
    )
    reconstruct_dtype: str = option(
        "auto",
        "reconstruct: precision of its passes (weights are float32 anyway); auto = bfloat16 where the machine has it",
        choices=("auto", "float32", "bfloat16"),
    )


@dataclass(frozen=True)
class DistillOptions:
    """Distillation: the kept weights of all blocks are trained together towards the dense model's predictions."""

    distill_epochs: int = option(1, "distill: times that all samples are gone through", metavar="N", at_least=1)
    distill_rate: float = option(
        0.0002,
        "distill: rate of Adam at its highest; 0.0001 where shrink makes MLPs narrower and no block goes",
        positive=True,
    )
    distill_dtype: str = option(
        "auto",
        "distill: precision of its passes (weights are float32 anyway); auto = bfloat16 where the machine has it",
        choices=("auto", "float32", "bfloat16"),
    )


@dataclass(frozen=True)
class AutoOptions:
    """The automatic choice: for every sub-block, what is best on samples that nothing was fitted to."""

    auto_tries: tuple[str, ...] = option(
        ("wanda+refit", "mixed+wanda+refit", "mixed+wanda+swaps+refit", "mixed+alps", "mixed+sparsegpt"),
        "auto: comma list of what is tried, each steps joined by +; barber may be followed by -GRANULARITY-THRESHOLD",
        metavar="STEPS[,STEPS]",
        comma=True,
    )
    auto_choices: tuple[str, ...] = option(
        (),
        "auto: what to choose without trying, by sub-blocks' names or patterns of them, such as *.0.mlp=wanda+refit;"
        " the last one that fits counts",
        metavar="PATTERN=STEPS[,...]",
        comma=True,
    )

    @property
    def taken_along(self) -> tuple[str, ...]:
        """The other steps whose options hold for it too."""
        words = [*self.auto_tries, *(choice.rpartition("=")[2] for choice in self.auto_choices)]
        names = (word.partition("-")[0] for tried in words for word in tried.split("+"))
        return tuple(dict.fromkeys(names))
