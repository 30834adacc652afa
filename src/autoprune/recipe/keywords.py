"""The options of Python's front doors, as type checkers and editors know them. Imports no torch.

Made from the dataclasses of the options by ``python tests/rules/test_docs.py``, which a test compares: change nothing
here. Options of steps from other packages count at run time; ``autoprune.Recipe.of`` takes them without types.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

Data = str | PathLike[str] | Iterable[Any]  # what data/given.py takes
Place = str | PathLike[str]

__all__ = [
    "CompareOptions",
    "Data",
    "EvaluateOptions",
    "InspectOptions",
    "Place",
    "PruneOptions",
    "RotateOptions",
    "ShrinkChoices",
    "SpeedChoices",
    "Unpack",
]


class StepOptions(TypedDict, total=False):
    """The options of all steps."""

    column_block: int
    damping: float
    ria_power: float
    alps_damping: float
    alps_compare: str
    admm_damping: float
    auto_tries: str | Sequence[str]
    auto_choices: str | Sequence[str]
    allocation: str
    owl_factor: float
    owl_range: float
    dlp_range: float
    divergence_range: float
    divergence_samples: int
    mixed_share: float
    mixed_damping: float
    swap_limit: int
    swap_candidates: int
    swap_protect: float
    refit_damping: float
    refit_iterations: int
    epochs: int
    learning_rate: float
    rate_trials: bool
    reconstruct_loss: str
    reconstruct_dtype: str
    distill_epochs: int
    distill_rate: float
    distill_dtype: str
    prune_granularity: str
    threshold: float
    prune_metric: str
    retain_reconstruction: bool
    compute_dtype: str


class PruneOptions(StepOptions, total=False):
    """What ``autoprune.prune`` takes."""

    revision: str | None
    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    sparsity: str | float | None
    sparsity_ratio: float | None
    sparsity_type: str
    ratio: str | Sequence[str]
    include: str | Sequence[str]
    ignore: str | Sequence[str]
    allow_partial: bool
    true_sequential: bool
    layer_errors: bool
    prune_method: str
    prune_barber: bool
    steps: str | Sequence[str]
    effort: str | None
    pruned_model: Place | None
    calibration_data: Data
    nsamples: int
    seqlen: int | None
    seed: int
    datasets_cache_dir: Place | None
    protocol: str | None
    eval_data: Data | None
    compare: bool
    tasks: str | Sequence[str]
    num_fewshot: int | None
    apply_chat_template: bool
    limit: int | None
    tasks_path: Place | None
    save_model: Place | None
    save_ppl: Place | None
    save_zeroshot: Place | None
    delete: bool
    resume: bool
    overwrite: bool
    batch_size: int
    activations: str
    memory: str | None
    no_dense: bool
    quiet: bool
    ratios: Mapping[str, float]


class EvaluateOptions(TypedDict, total=False):
    """What ``autoprune.evaluate`` takes."""

    revision: str | None
    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    seqlen: int | None
    seed: int
    datasets_cache_dir: Place | None
    protocol: str | None
    eval_data: Data | None
    tasks: str | Sequence[str]
    num_fewshot: int | None
    apply_chat_template: bool
    limit: int | None
    tasks_path: Place | None
    save_ppl: Place | None
    save_zeroshot: Place | None
    resume: bool
    overwrite: bool
    batch_size: int
    activations: str
    memory: str | None
    quiet: bool


class CompareOptions(TypedDict, total=False):
    """What ``autoprune.compare`` takes."""

    revision: str | None
    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    seqlen: int | None
    datasets_cache_dir: Place | None
    eval_data: Data | None
    tasks: str | Sequence[str]
    num_fewshot: int | None
    apply_chat_template: bool
    limit: int | None
    tasks_path: Place | None
    resume: bool
    overwrite: bool
    batch_size: int
    activations: str
    memory: str | None
    quiet: bool


class RotateOptions(TypedDict, total=False):
    """What ``autoprune.rotate`` takes."""

    revision: str | None
    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    calibration_data: Data
    nsamples: int
    seqlen: int | None
    seed: int
    datasets_cache_dir: Place | None
    overwrite: bool
    batch_size: int
    activations: str
    quiet: bool
    basis: str
    rotate_steps: int
    rotate_rate: float
    rotate_blocks: int


class ShrinkChoices(TypedDict, total=False):
    """What ``autoprune.shrink`` takes."""

    revision: str | None
    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    calibration_data: Data
    nsamples: int
    seqlen: int | None
    seed: int
    datasets_cache_dir: Place | None
    resume: bool
    overwrite: bool
    batch_size: int
    activations: str
    memory: str | None
    quiet: bool
    blocks: float | None
    by: str
    mlp: float | None
    multiple: int
    experts: float | None
    experts_by: str
    heal: str
    epochs: int
    learning_rate: float
    rate_trials: bool
    reconstruct_loss: str
    reconstruct_dtype: str
    distill_epochs: int
    distill_rate: float
    distill_dtype: str


class SpeedChoices(TypedDict, total=False):
    """What ``autoprune.speed`` takes."""

    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    overwrite: bool
    quiet: bool
    rounds: int
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    compiled: bool


class InspectOptions(StepOptions, total=False):
    """What ``autoprune.inspect`` takes."""

    revision: str | None
    dtype: str
    device: str
    cache_dir: Place | None
    trust_remote_code: bool
    steps: str | Sequence[str]
    effort: str | None
    nsamples: int
    seqlen: int | None
    batch_size: int
