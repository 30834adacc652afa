"""The options of a run by group, as frozen dataclasses: every field is a flag, a TOML key, and an entry in the record.
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoprune.steps.options import HEALING, HEALINGS, option

ZEROSHOT_TASKS = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
PLACES = ("device", "cpu", "disk")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_WANDA = {"calibration_data": "c4", "nsamples": 128, "eval_data": ("wikitext2",)}
# What papers fixed together; the seed is left free, because they average over several.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "wanda-2048": {**_WANDA, "seqlen": 2048},
    "wanda-4096": {**_WANDA, "seqlen": 4096},
    "alps": {**_WANDA, "seqlen": 2048, "eval_data": ("wikitext2", "ptb", "c4")},
}


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is held."""

    model: str = option(
        "", "hub id, local directory, or `demo` (the model this project ships)", metavar="MODEL", required=True
    )
    revision: str | None = option(
        None, "branch, tag or commit of a model from the hub (default: its main branch)", metavar="REVISION"
    )
    dtype: str = option("auto", "precision the blocks run in; auto = the model's own", choices=DTYPES)
    device: str = option("auto", "where blocks run: cpu, cuda, cuda:1, mps; auto = the first accelerator, else cpu")
    cache_dir: str | None = option(None, "where models from the hub are kept", metavar="DIR")
    trust_remote_code: bool = option(False, "run modelling code that comes with the model")


@dataclass(frozen=True)
class PruningOptions:
    """What is pruned, and how much."""

    sparsity: str | None = option(
        None, "the target in one word: a ratio such as 0.5, or N:M such as 2:4; --effort is medium then", metavar="S"
    )
    sparsity_ratio: float | None = option(
        None, "fraction of weights to zero in [0, 1); 0 = only evaluate the dense model; follows from N:M when omitted"
    )
    sparsity_type: str = option(
        "unstructured", "unstructured, or N:M such as 2:4 and 4:8: at most N non-zero in every M", metavar="TYPE"
    )
    ratio: tuple[str, ...] = option(
        (),
        "other ratios for some layers: a glob and a fraction, such as *.mlp.*=0.6; the last that fits counts",
        metavar="PATTERN=R",
    )
    include: tuple[str, ...] = option(
        (), "the only layers to prune: a glob against their names, as for --ignore; repeatable", metavar="PATTERN"
    )
    ignore: tuple[str, ...] = option(
        (), "layers left dense: a glob against names like model.layers.0.mlp.up_proj; repeatable", metavar="PATTERN"
    )
    allow_partial: bool = option(False, "prune even when less than 90 %% of the block parameters can be reached")
    true_sequential: bool = option(
        False,
        "inside a block, prune layers behind the pruned ones before them: one forward pass instead of two, all samples"
        " at once",
    )
    layer_errors: bool = option(
        False, "measure layer output errors where no step looks at data too, which needs calibration data"
    )


@dataclass(frozen=True)
class CalibrationOptions:
    """The texts that data-driven methods look at."""

    calibration_data: str = option(
        "c4",
        "c4, wikitext2, ptb, demo, a hub dataset, or a local .txt, .jsonl, .json.gz, .parquet, of texts or chats; or"
        " .safetensors with input_ids; or a mix by shares of the windows: c4:0.5,chat.jsonl:0.5",
        metavar="SOURCE",
    )
    nsamples: int = option(128, "calibration windows", metavar="N", at_least=1)
    seqlen: int | None = option(
        None,
        "tokens per window, for calibration and perplexity (default 2048, or the model's context if it has less)",
        metavar="TOKENS",
        at_least=2,
    )
    seed: int = option(0, "seed of every random choice")
    datasets_cache_dir: str | None = option(None, "where datasets from the hub are kept", metavar="DIR")
    protocol: str | None = option(
        None,
        "calibration and evaluation as a paper did both: their data, nsamples and seqlen",
        choices=tuple(PROTOCOLS),
    )


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured of the result, or of the dense model at ratio 0."""

    eval_data: tuple[str, ...] = option(
        ("wikitext2", "ptb", "c4"),
        "comma list of texts for perplexity: the same kinds as --calibration_data",
        metavar="SOURCE[,SOURCE]",
        comma=True,
    )
    compare: bool = option(
        False,
        "after pruning, say how far predictions are from the dense model's on these texts, and save it with them",
    )


@dataclass(frozen=True)
class ZeroShotOptions:
    """Zero-shot tasks, measured by lm-evaluation-harness."""

    tasks: tuple[str, ...] = option(
        (),
        "comma list of tasks, or of sets of them: classic (the seven of the papers, taken with --save_zeroshot and"
        " without a list), knowledge (mmlu), reasoning (gsm8k, ifeval); `--tasks list` names all that there are",
        metavar="TASK[,TASK]",
        comma=True,
    )
    num_fewshot: int | None = option(
        None,
        "examples shown before each question (default: as the task says, 0 for most; in sets as usually reported)",
        metavar="N",
        at_least=0,
    )
    apply_chat_template: bool = option(
        False, "put questions into the tokenizer's chat template, examples as turns; reasoning does where there is one"
    )
    limit: int | None = option(
        None, "use only the first N samples of every task: for a trial, not for a paper", metavar="N", at_least=1
    )
    tasks_path: str | None = option(None, "folder with tasks of your own, as the harness's YAML files", metavar="DIR")


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where."""

    save_model: str | None = option(None, "write the pruned checkpoint here", metavar="DIR", place=True)
    save_ppl: str | None = option(
        None, "measure perplexity and write its table and JSON here", metavar="DIR", place=True
    )
    save_zeroshot: str | None = option(
        None, "measure zero-shot accuracy and write its table and JSON here", metavar="DIR", place=True
    )
    delete: bool = option(False, "remove the checkpoint that this run wrote, after the evaluations")
    resume: bool = option(False, "go on with an unfinished run of the same command at its last finished block")
    overwrite: bool = option(
        False,
        "replace earlier results in the places where this run writes, though they are of other settings",
    )


@dataclass(frozen=True)
class RunOptions:
    """How the run behaves."""

    batch_size: int = option(0, "windows per forward pass; 0 = chosen from seqlen and steps", metavar="N", at_least=0)
    activations: str = option(
        "cpu",
        "where hidden states live between blocks: on the device, in memory, or in a file on disk",
        choices=PLACES,
    )
    memory: str | None = option(
        None,
        "budget such as 8GiB: windows per pass and the place of hidden states are chosen to fit it",
        metavar="SIZE",
    )
    no_dense: bool = option(
        False, "measure the result alone: no perplexity of the dense model beside it, which takes as long again"
    )
    quiet: bool = option(False, "no progress, no tables; errors only")


@dataclass(frozen=True)
class RotationOptions:
    """What is rotated, and how the rotation is learned."""

    basis: str = option(
        "stream",
        "what is turned: the hidden states, the values of every attention head, or both",
        choices=("stream", "heads", "both"),
    )
    rotate_steps: int = option(100, "steps of the optimiser", metavar="N", at_least=1)
    rotate_rate: float = option(0.01, "its learning rate", metavar="RATE", positive=True)
    rotate_blocks: int = option(
        3, "random blocks that each step looks at; of the hidden states alone", metavar="N", at_least=1
    )


@dataclass(frozen=True)
class ShrinkOptions:
    """What of a model goes, and how the rest makes up for it."""

    blocks: float | None = option(
        None, "blocks to drop: how many, or which share of them if below 1", metavar="N", at_least=0
    )
    by: str = option(
        "influence",
        "which blocks go: those that turn hidden states least, the run over which the last token turns least, or one"
        " by one those without which the predictions move least (slow)",
        choices=("influence", "angular", "divergence"),
    )
    mlp: float | None = option(
        None,
        "share of the MLPs' width to drop; what is left makes up for it by least squares",
        metavar="SHARE",
        fraction=True,
    )
    multiple: int = option(64, "the width of the MLPs stays a multiple of this", metavar="N", at_least=1)
    experts: float | None = option(
        None, "experts to drop in every block: how many, or which share of them if below 1", metavar="N", at_least=0
    )
    experts_by: str = option(
        "reap", "which experts go: those that add least (REAP), or that fewest tokens go to", choices=("reap", "load")
    )
    heal: str = option(
        HEALING,
        "what makes up for what went: nothing, blocks behind it scaled so that sizes fit, blocks beside it trained, or"
        " then all blocks together (in memory as a whole)",
        choices=tuple(HEALINGS),
    )


@dataclass(frozen=True)
class SpeedOptions:
    """What the stop-watch measures."""

    rounds: int = option(
        10, "how often every model is measured; ratios are taken round by round", metavar="N", at_least=6
    )
    prompt_tokens: int = option(128, "tokens of every prompt", metavar="N", at_least=1)
    new_tokens: int = option(32, "tokens generated behind every prompt", metavar="N", at_least=2)
    batch_size: int = option(8, "sequences at a time in the larger batch", metavar="N", at_least=2)
    compiled: bool = option(False, "measure every model compiled (torch.compile) as well")
