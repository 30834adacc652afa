"""Every choice that a user can make, as frozen dataclasses.

This file is the one source of the command-line flags (``cli/flags.py``), of the TOML keys and of the
recipe that is written into ``autoprune.json``. It imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from autoprune.core.sparsity import SemiStructured, Target, check_ratio, parse_target
from autoprune.errors import RecipeError

METHOD_NAMES = ("magnitude", "wanda", "sparsegpt")
GRANULARITIES = ("block", "layer", "output1", "input1")
METRICS = ("WD", "W", "D")
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


def option(default: Any = dataclasses.MISSING, help: str = "", **extra: Any) -> Any:
    """A dataclass field that is also a flag: ``help``, ``choices`` and ``metavar`` ride in its metadata."""
    return dataclasses.field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is held."""

    model: str = option("", "hub id, local directory, or `demo` (the model this project ships)", metavar="MODEL", required=True)
    dtype: str = option("auto", "precision the blocks run in; auto = the model's own", choices=DTYPES)
    device: str = option("auto", "where blocks run: cpu, cuda, cuda:1, mps; auto = the first accelerator, else cpu")
    cache_dir: str | None = option(None, "where models from the hub are kept", metavar="DIR")
    trust_remote_code: bool = option(False, "run modelling code that comes with the model")


@dataclass(frozen=True)
class PruningOptions:
    """What is pruned, how much, and by which first pass."""

    prune_method: str = option("wanda", "first pass: magnitude, wanda or sparsegpt (or one from an installed plugin)", metavar="METHOD")
    sparsity_ratio: float | None = option(
        None, "fraction of weights to zero in [0, 1); 0 = only evaluate the dense model; follows from N:M when omitted"
    )
    sparsity_type: str = option("unstructured", "unstructured, or N:M such as 2:4 and 4:8: at most N non-zero in every M", metavar="TYPE")
    ignore: tuple[str, ...] = option((), "layers left dense: a glob against names like model.layers.0.mlp.up_proj; repeatable", metavar="PATTERN")
    allow_partial: bool = option(False, "prune even when less than 90 %% of the block parameters can be reached")
    layer_errors: bool = option(False, "measure layer output errors for magnitude too, which needs calibration data")


@dataclass(frozen=True)
class SparseGPTOptions:
    """Hyper-parameters of SparseGPT (arXiv 2301.00774, algorithm 1)."""

    column_block: int = option(128, "sparsegpt: columns swept together before the lazy update", metavar="COLUMNS")
    damping: float = option(0.01, "sparsegpt: damping of the Hessian, as a fraction of its mean diagonal")


@dataclass(frozen=True)
class BarberOptions:
    """Hyper-parameters of LLM-Barber (arXiv 2408.10631)."""

    prune_granularity: str = option("output1", "LLM-Barber: which scores are compared with each other", choices=GRANULARITIES)
    threshold: float = option(0.01, "LLM-Barber: fraction of the inverted pairs that is exchanged, in [0, 1]")
    prune_metric: str = option("WD", "LLM-Barber: weight x gradient, weight alone, gradient alone", choices=METRICS)
    retain_reconstruction: bool = option(False, "LLM-Barber: keep the pruned model's weight values (SparseGPT's update) instead of the dense ones")


@dataclass(frozen=True)
class RebuildOptions:
    """Whether LLM-Barber runs, and on whose pattern."""

    prune_barber: bool = option(False, "rebuild the keep pattern with LLM-Barber after the first pass")
    pruned_model: str | None = option(None, "rebuild this already pruned copy of --model instead of pruning first", metavar="DIR")


@dataclass(frozen=True)
class CalibrationOptions:
    """The texts that data-driven methods look at."""

    calibration_data: str = option(
        "c4", "c4, wikitext2, ptb, demo, a hub dataset, or a local .txt, .jsonl, .json.gz, .parquet; or .safetensors with input_ids", metavar="SOURCE"
    )
    nsamples: int = option(128, "calibration windows", metavar="N")
    seqlen: int | None = option(
        None, "tokens per window, for calibration and perplexity (default 2048, or the model's context if it has less)", metavar="TOKENS"
    )
    seed: int = option(0, "seed of every random choice")
    datasets_cache_dir: str | None = option(None, "where datasets from the hub are kept", metavar="DIR")
    protocol: str | None = option(None, "calibration and evaluation as a paper did both: their data, nsamples and seqlen", choices=tuple(PROTOCOLS))


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured, before and after."""

    eval_data: tuple[str, ...] = option(
        ("wikitext2", "ptb", "c4"), "comma list of texts for perplexity: the same kinds as --calibration_data", metavar="SOURCE[,SOURCE]", comma=True
    )


@dataclass(frozen=True)
class ZeroShotOptions:
    """Zero-shot tasks, measured by lm-evaluation-harness."""

    tasks: tuple[str, ...] = option(ZEROSHOT_TASKS, "comma list of tasks", metavar="TASK[,TASK]", comma=True)
    num_fewshot: int | None = option(None, "examples shown before each question (default: as the task says, 0 for most)", metavar="N")
    limit: int | None = option(None, "use only the first N samples of every task: for a trial, not for a paper", metavar="N")
    tasks_path: str | None = option(None, "folder with tasks of your own, as the harness's YAML files", metavar="DIR")


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where."""

    save_model: str | None = option(None, "write the pruned checkpoint here", metavar="DIR")
    save_ppl: str | None = option(None, "measure perplexity and write its table and JSON here", metavar="DIR")
    save_zeroshot: str | None = option(None, "measure zero-shot accuracy and write its table and JSON here", metavar="DIR")
    delete: bool = option(False, "remove the checkpoint that this run wrote, after the evaluations")
    resume: bool = option(False, "go on with an unfinished run of the same command at its last finished block")
    overwrite: bool = option(False, "replace an earlier autoprune result in --save_model")


@dataclass(frozen=True)
class RunOptions:
    """How the run behaves."""

    batch_size: int = option(0, "windows per forward pass; 0 = chosen from seqlen", metavar="N")
    activations: str = option("cpu", "where hidden states live between blocks: on the device, in memory, or in a file on disk", choices=PLACES)
    memory: str | None = option(None, "budget such as 8GiB: windows per pass and the place of hidden states are chosen to fit it", metavar="SIZE")
    quiet: bool = option(False, "no progress, no tables; errors only")


@dataclass(frozen=True)
class Recipe:
    """One run: groups of options that together say everything about it."""

    model: ModelOptions = ModelOptions()
    pruning: PruningOptions = PruningOptions()
    sparsegpt: SparseGPTOptions = SparseGPTOptions()
    rebuild: RebuildOptions = RebuildOptions()
    barber: BarberOptions = BarberOptions()
    calibration: CalibrationOptions = CalibrationOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    zeroshot: ZeroShotOptions = ZeroShotOptions()
    output: OutputOptions = OutputOptions()
    run: RunOptions = RunOptions()

    @property
    def target(self) -> Target | None:
        """The sparsity asked for; None when only the dense model is evaluated, or when a given pattern is taken as it is.

        Raises: RecipeError if ratio and type contradict each other.
        """
        if self.rebuild.pruned_model and self.pruning.sparsity_type == "unstructured":
            check_ratio(self.pruning.sparsity_ratio)
            return None
        return parse_target(self.pruning.sparsity_type, self.pruning.sparsity_ratio)

    def with_model(self, model: str) -> Recipe:
        """The same recipe for another model."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, model=model))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they go into ``autoprune.json``."""
        return dataclasses.asdict(self)


def recipe_from_flat(values: dict[str, Any]) -> Recipe:
    """Builds a recipe from flat ``{field: value}``; fields that are absent keep their defaults.

    Raises: RecipeError naming the first key that no option has.
    """
    known = {f.name for group in groups(Recipe) for f in dataclasses.fields(group.type)}
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"unknown option {unknown[0]!r}; known options: {', '.join(sorted(known))}")
    values = {**PROTOCOLS.get(str(values.get("protocol")), {}), **values}
    parts = {}
    for group in groups(Recipe):
        hints = typing.get_type_hints(group.type)
        fields = [f for f in dataclasses.fields(group.type) if f.name in values]
        parts[group.name] = group.type(**{f.name: _as_declared(f, hints[f.name], values[f.name]) for f in fields})
    return validated(Recipe(**parts))


def _as_declared(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A value from Python or TOML as the option's type wants it: paths become words, lists tuples, one word a list of one.

    Raises: RecipeError if it is of another type.
    """
    if isinstance(value, PurePath):
        value = str(value)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",")) if field.metadata.get("comma") else (value,)
        if isinstance(value, (list, tuple)) and all(isinstance(part, (str, PurePath)) for part in value):
            return tuple(str(part) for part in value)
        raise RecipeError(f"--{field.name} {value!r} is no list of words")
    kinds = typing.get_args(hint) or (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if float in kinds and (whole or field.name == "sparsity_ratio"):  # the ratio has a judge of its own, core.sparsity
        return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds)
        raise RecipeError(f"--{field.name} {value!r} is of the wrong kind; it must be {wanted}")
    return value


_WORDS = {str: "a word", int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}


@dataclass(frozen=True)
class Group:
    """One group of options inside a recipe."""

    name: str
    type: type


def groups(recipe_type: type) -> list[Group]:
    """The option groups of a recipe, in the order of its fields."""
    return [Group(f.name, type(f.default)) for f in dataclasses.fields(recipe_type)]


def validated(recipe: Recipe) -> Recipe:
    """Returns the recipe unchanged if its choices are possible together.

    Raises: RecipeError naming the option, its value and the remedy.
    """
    target = recipe.target
    _check_numbers(recipe)
    _check_protocol(recipe)
    barber, rebuild = recipe.barber, recipe.rebuild
    if rebuild.prune_barber and isinstance(target, SemiStructured) and barber.prune_granularity != "output1":
        raise RecipeError(f"--prune_granularity {barber.prune_granularity} can't keep {target}: only output1 exchanges weights inside N:M groups")
    if rebuild.pruned_model and not rebuild.prune_barber:
        raise RecipeError("--pruned_model only has a meaning together with --prune_barber; add it, or evaluate with `autoprune eval`")
    if recipe.output.delete and not recipe.output.save_model:
        raise RecipeError("--delete removes what --save_model wrote, but there is no --save_model; add it or drop --delete")
    for name in ("save_model", "save_ppl", "save_zeroshot"):
        if getattr(recipe.output, name) == "":
            raise RecipeError(f"--{name} is empty; name a directory, or leave the flag out")
    if not recipe.evaluation.eval_data or "" in recipe.evaluation.eval_data:
        raise RecipeError("--eval_data is empty or has an empty part; give a comma list such as wikitext2,ptb")
    return recipe


def _check_protocol(recipe: Recipe) -> None:
    name = recipe.calibration.protocol
    for option, fixed in PROTOCOLS[name].items() if name else ():
        chosen = recipe.evaluation.eval_data if option == "eval_data" else getattr(recipe.calibration, option)
        if chosen != fixed:
            said, ours = (",".join(v) if isinstance(v, tuple) else v for v in (chosen, fixed))
            raise RecipeError(f"--{option} {said} contradicts --protocol {name}, which fixes it at {ours}; leave out one of the two")


def _check_numbers(recipe: Recipe) -> None:
    at_least = [
        ("nsamples", recipe.calibration.nsamples, 1),
        ("seqlen", recipe.calibration.seqlen, 2),
        ("column_block", recipe.sparsegpt.column_block, 1),
        ("batch_size", recipe.run.batch_size, 0),
        ("limit", recipe.zeroshot.limit, 1),
        ("num_fewshot", recipe.zeroshot.num_fewshot, 0),
    ]
    for name, value, lowest in at_least:
        if value is not None and value < lowest:
            raise RecipeError(f"--{name} {value} is too small; it must be at least {lowest}")
    if not 0 <= recipe.barber.threshold <= 1:
        raise RecipeError(f"--threshold {recipe.barber.threshold} is not a fraction; it must lie in [0, 1]")
    if not 0 < recipe.sparsegpt.damping < float("inf"):
        raise RecipeError(f"--damping {recipe.sparsegpt.damping} must be a positive number, such as 0.01")
    choices = [
        ("prune_granularity", recipe.barber.prune_granularity, GRANULARITIES),
        ("prune_metric", recipe.barber.prune_metric, METRICS),
        ("dtype", recipe.model.dtype, DTYPES),
        ("activations", recipe.run.activations, PLACES),
        ("protocol", recipe.calibration.protocol, (None, *PROTOCOLS)),
    ]
    for name, word, allowed in choices:
        if word not in allowed:
            raise RecipeError(f"--{name} {word!r} is unknown; choose from {', '.join(filter(None, allowed))}")
