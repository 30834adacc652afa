"""Zero-shot accuracy through lm-evaluation-harness, unforked."""

from __future__ import annotations

import copy
import functools
import logging
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autoprune.errors import AutoPruneError, DataError, RecipeError
from autoprune.evaluation.bars import bars_told
from autoprune.evaluation.flips import METRICS, chosen, no_choices
from autoprune.events import Emit, Notice, Phase, silent
from autoprune.recipe.recipe import ZeroShotOptions
from autoprune.results.types import TaskResult, ZeroShotResult

LETTERS = string.digits + string.ascii_letters  # answers of a sample, in one letter


def check_tasks(options: ZeroShotOptions, emit: Emit = silent) -> None:
    """Finds every task and fetches its data before long work begins.

    Raises: RecipeError if the harness is not installed; DataError naming a task, folder or data set that can't be had.
    """
    if options.tasks_path and not Path(options.tasks_path).is_dir():
        raise DataError(
            f"--tasks_path {options.tasks_path}: there is no such directory; give the folder that holds the tasks'"
            " YAML files"
        )
    _harness()
    manager = _task_manager(options)
    if missing := [task for task in options.tasks if task not in manager.all_tasks]:
        where = (
            f" nor in --tasks_path {options.tasks_path}"
            if options.tasks_path
            else "; a task of your own needs --tasks_path FOLDER"
        )
        raise DataError(f"--tasks {missing[0]}: lm-evaluation-harness knows no task of that name{where}")
    if hasattr(manager, "load"):  # older harnesses load when they evaluate
        for task in options.tasks:
            emit(Phase(f"task {task}"))
            try:
                with bars_told(emit):
                    loaded = manager.load([task])["tasks"]
            except Exception as error:  # whatever the harness, the datasets library or the task's own code may raise
                raise _no_data(task, error) from error
            for name, found in loaded.items():
                _check_task(task if name == task else f"{task} ({name})", found)


def _check_task(name: str, task: Any) -> None:
    """Raises: DataError if the harness would refuse to run a task, or have no figure for it in the end."""
    if getattr(task, "UNSAFE_CODE", False):
        raise DataError(
            f"--tasks {name}: lm-evaluation-harness calls it unsafe, because it runs code that the model writes, and"
            " autoprune runs no such task; save the model and run it there: lm_eval --model_args pretrained=DIR"
            " --confirm_run_unsafe_code"
        )
    if getattr(task, "MULTIMODAL", False):
        raise DataError(f"--tasks {name}: its samples are not of text alone; choose tasks for language models")
    if callable(getattr(getattr(task, "config", None), "process_results", None)):
        return  # it computes its metrics itself
    unknown = [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
    if unknown:
        raise DataError(
            f"--tasks {name}: lm-evaluation-harness knows no metric {unknown[0]!r}, so it would give no figure; mend"
            " metric_list in the task's YAML file"
        )


def zeroshot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions, *, batch: int, emit: Emit
) -> ZeroShotResult:
    """Accuracy of a model in memory on every task; samples and prompts are the harness's own.

    Raises: DataError if a task's data can't be fetched.
    """
    raw, settings = run_harness(model, tokenizer, options, batch=batch, emit=emit)
    shown = _shown(raw, options.tasks)
    members = {member for names in raw.get("group_subtasks", {}).values() for member in names}
    if silent_tasks := [name for name in raw["configs"] if name not in shown and name not in members]:
        emit(Notice(f"--tasks {', '.join(silent_tasks)}: lm-evaluation-harness gave no figure for it"))
    return ZeroShotResult(tuple(_task(raw, name) for name in shown), settings)


def check_choices(options: ZeroShotOptions) -> None:
    """Raises: DataError naming a task that is no multiple-choice task: it has no answers that could flip."""
    manager = _task_manager(options)
    tasks = manager.load(list(options.tasks))["tasks"] if hasattr(manager, "load") else {}
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise no_choices(name)


def run_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions, *, batch: int, emit: Emit
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the harness says of a model in memory, with its log of every sample; and the settings of the run.

    Raises: DataError if a task's data can't be fetched.
    """
    lm_eval = _harness()
    from lm_eval.models.huggingface import HFLM

    emit(Phase(f"zero-shot: {', '.join(options.tasks)}"))
    held = HFLM(
        pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch
    )  # a copy, because it may get a padding token
    try:
        with bars_told(emit):
            raw = lm_eval.simple_evaluate(
                model=held,
                tasks=list(options.tasks),
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                task_manager=_task_manager(options),
                log_samples=True,
            )
    except OSError as error:  # ConnectionError is one
        raise _no_data(", ".join(options.tasks), error) from error
    if options.limit:
        emit(
            Notice(
                f"only the first {options.limit} samples of every task were used (--limit): fit for a trial, not for a"
                " paper"
            )
        )
    asked = {"num_fewshot": options.num_fewshot, "limit": options.limit, "batch_size": batch}
    return raw, {"harness": raw["lm_eval_version"], **asked, "max_length": held.max_length}


def _shown(raw: dict[str, Any], tasks: Iterable[str]) -> list[str]:
    """The tasks in the order they were asked for; one that stands for several without a mean of its own gives way to
    them.
    """
    asked = list(dict.fromkeys(tasks))
    members = raw.get("group_subtasks", {})
    covered = {member for name in asked if _metrics(raw, name) for member in members.get(name, ())}
    rest = [name for name in raw["configs"] if name not in asked and name not in covered]
    return [name for name in [*asked, *rest] if _metrics(raw, name)]


def _task(raw: dict[str, Any], name: str) -> TaskResult:
    numbers, values = raw["results"][name], _metrics(raw, name)
    errors = {metric: _number(numbers, _stderr(key)) for metric, key in values.items()}
    count = raw.get("n-samples", {}).get(name, {}).get("effective")
    return TaskResult(
        name,
        str(raw["versions"].get(name, "")),
        raw["n-shot"].get(name),
        count,
        {metric: float(numbers[key]) for metric, key in values.items()},
        {metric: error for metric, error in errors.items() if error is not None},
        _correct(samples := _samples(raw, name), values),
        _chosen(samples, values),
    )


def _samples(raw: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The log of a task, in the order of its items; of a group of tasks, those of its members one behind the other.

    Every entry has the delimiter that its task puts before an answer.
    """
    members = raw.get("group_subtasks", {}).get(name)
    if members:
        return [sample for member in members for sample in _samples(raw, member)]
    delimiter = raw["configs"].get(name, {}).get("target_delimiter", " ")
    log = sorted(raw.get("samples", {}).get(name, []), key=lambda sample: sample["doc_id"])
    return [{**sample, "delimiter": delimiter} for sample in log]


def _metrics(raw: dict[str, Any], name: str) -> dict[str, str]:
    """Our name of every metric of a task -> the harness's: ``acc`` -> ``acc,none``; a filter that does something is
    named.
    """
    numbers = raw["results"].get(name, {})
    keys = [key for key in numbers if "," in key and "_stderr," not in key and _number(numbers, key) is not None]
    return {key.removesuffix(",none"): key for key in keys}


def _stderr(key: str) -> str:
    metric, _, kind = key.partition(",")
    return f"{metric}_stderr,{kind}"


def _number(numbers: dict[str, Any], key: str) -> float | None:
    value = numbers.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _correct(samples: list[dict[str, Any]], metrics: dict[str, str]) -> dict[str, str]:
    """Right or wrong, sample by sample, as a word of 1 and 0; only for metrics that are nothing else."""
    found: dict[str, str] = {}
    for metric, key in metrics.items():
        name, _, kind = key.partition(",")
        values = [sample.get(name) for sample in samples if sample.get("filter", "none") == kind]
        if values and all(value in (0, 1) for value in values):
            found[metric] = "".join("1" if value else "0" for value in values)
    return found


def _chosen(samples: list[dict[str, Any]], metrics: dict[str, str]) -> dict[str, str]:
    """Which answer was taken, a letter a sample, for accuracies of multiple-choice tasks."""
    found: dict[str, str] = {}
    for metric in METRICS:
        if metric in metrics and samples and all(_is_choice(sample) for sample in samples):
            taken = [chosen("", sample, metric, sample["delimiter"]) for sample in samples]
            found[metric] = "".join(LETTERS[choice] for choice in taken)
    return found


def _is_choice(sample: dict[str, Any]) -> bool:
    answers = sample.get("filtered_resps", ())
    likelihoods = all(not isinstance(answer, str) and len(answer) == 2 for answer in answers)
    return likelihoods and 2 <= len(answers) == len(sample.get("arguments", ())) <= len(LETTERS)


def _no_data(task: str, error: Exception) -> AutoPruneError:
    """What to say when a task can't be loaded."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"--tasks {task}: its data can't be had ({reason}); without a network give tasks of your own by --tasks_path"
        " FOLDER"
    )


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise RecipeError(
            "zero-shot evaluation needs lm-evaluation-harness, which is not installed: pip install lm-eval"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _task_manager(options: ZeroShotOptions) -> Any:
    """The harness's list of tasks.

    Reading its own takes seconds: done once, and not at all if all tasks are the user's.
    """
    if not options.tasks_path:
        return _listed(None, (), defaults=True)
    files = sorted(path for path in Path(options.tasks_path).rglob("*") if path.suffix in (".yaml", ".py"))
    stamp = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    own = _listed(options.tasks_path, stamp, defaults=False)
    plain = all(task in own.all_subtasks for task in options.tasks)  # a group may have members from the harness's list
    return own if plain else _listed(options.tasks_path, stamp, defaults=True)


@functools.lru_cache(maxsize=2)
def _listed(folder: str | None, stamp: tuple[object, ...], *, defaults: bool) -> Any:
    """``stamp`` changes when a file in the folder does."""
    _harness()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=defaults)
