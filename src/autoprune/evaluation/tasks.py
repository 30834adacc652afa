"""Zero-shot accuracy through lm-evaluation-harness, unforked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autoprune.errors import DataError, ModelError, NumericsError
from autoprune.evaluation.bars import bars_told
from autoprune.evaluation.flips import answers, no_choices
from autoprune.evaluation.harness import Respondent, delimiter, folder_stamp, harness, listed, no_data, task_manager
from autoprune.evaluation.remember import Notes
from autoprune.events import Emit, Notice, Phase, silent
from autoprune.recipe.recipe import ZeroShotOptions
from autoprune.recipe.task_sets import SETS, Asked, asked_of
from autoprune.results.codec import from_jsonable
from autoprune.results.types import TaskResult, ZeroShotResult


def check_tasks(options: ZeroShotOptions, emit: Emit = silent) -> None:
    """Finds every task and fetches its data before long work begins.

    Raises: RecipeError if the harness is not installed; DataError naming a task, folder or data set that can't be had.
    """
    if options.tasks_path and not Path(options.tasks_path).is_dir():
        raise DataError(
            f"--tasks_path {options.tasks_path}: there is no such directory; give the folder that holds the tasks'"
            " YAML files"
        )
    names = [asked.name for asked in _asked(options)]
    manager = task_manager(names, options.tasks_path)
    if missing := [task for task in names if task not in manager.all_tasks]:
        where = (
            f" nor in --tasks_path {options.tasks_path}"
            if options.tasks_path
            else "; a task of your own needs --tasks_path FOLDER"
        )
        raise DataError(f"--tasks {missing[0]}: lm-evaluation-harness knows no task of that name{where}")
    if hasattr(manager, "load"):  # older harnesses load when they evaluate
        for task in names:
            emit(Phase(f"task {task}"))
            try:
                with bars_told(emit):
                    loaded = manager.load([task])["tasks"]
            except Exception as error:  # whatever the harness, the datasets library or the task's own code may raise
                raise no_data(task, error) from error
            for name, found in loaded.items():
                _check_task(task if name == task else f"{task} ({name})", found)


def known_tasks(folder: str | None = None) -> list[str]:
    """What --tasks may name: sets, tasks and groups of tasks, those in ``folder`` among them.

    Raises: RecipeError if the harness is not installed; DataError if ``folder`` is no directory.
    """
    if folder and not Path(folder).is_dir():
        raise DataError(f"--tasks_path {folder}: there is no such directory")
    found = listed(folder, folder_stamp(folder) if folder else (), defaults=True)
    return [*SETS, *sorted(found.all_tasks)]


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


def check_template(options: ZeroShotOptions, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises: ModelError if a chat template is asked for and the tokenizer has none."""
    if options.apply_chat_template and not tokenizer.chat_template:
        raise ModelError(
            "--apply_chat_template: the model's tokenizer has no chat template, so it is no chat model; leave the flag"
            " out, or add a chat_template.jinja beside the tokenizer"
        )


def check_choices(options: ZeroShotOptions) -> None:
    """Raises: DataError naming a task that is no multiple-choice task: it has no answers that could flip."""
    names = [asked.name for asked in _asked(options)]
    manager = task_manager(names, options.tasks_path)
    tasks = manager.load(names)["tasks"] if hasattr(manager, "load") else {}
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise no_choices(name)


def zeroshot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: ZeroShotOptions,
    *,
    batch: int,
    emit: Emit,
    notes: Notes,
    known: Mapping[str, object],
) -> ZeroShotResult:
    """Accuracy of a model in memory on every task; samples and prompts are the harness's own.

    ``known`` is all that tells the model from others: what ``notes`` have of it is not asked again; nothing is noted
    of a model of which nothing is known. Raises: DataError if a task's data can't be fetched.
    """
    check_template(options, tokenizer)
    tasks = _asked(options)
    manager = task_manager([asked.name for asked in tasks], options.tasks_path)
    respondent: Respondent | None = None
    found: list[TaskResult] = []
    length, talked = 0, list[str]()
    for asked in tasks:
        chat = bool(tokenizer.chat_template) if asked.chat is None else asked.chat
        key = {**known, **_key(asked, options), "chat": chat, "batch": batch} if known else {}
        if key and (kept := notes.find(key)):
            emit(Notice(f"task {asked.name}: measured before"))
            results, length = from_jsonable(tuple[TaskResult, ...], kept["tasks"]), kept["max_length"]
        else:
            emit(Phase(f"zero-shot: {asked.name}"))
            respondent = respondent or Respondent(model, tokenizer, batch)
            raw = respondent.ask(asked, chat=chat, limit=options.limit, manager=manager, emit=emit)
            results, length = _results(raw, asked.name, emit, chat=chat), respondent.max_length
            if key:
                notes.add(key, {"tasks": results, "max_length": length})
        found += results
        talked += [asked.name] if chat else []
    if options.limit:
        emit(
            Notice(
                f"only the first {options.limit} samples of every task were used (--limit): fit for a trial, not for a"
                " paper"
            )
        )
    asked_for: dict[str, Any] = {"num_fewshot": options.num_fewshot, "limit": options.limit, "batch_size": batch}
    asked_for |= {"apply_chat_template": True} if options.apply_chat_template else {}
    if talked and not options.apply_chat_template:
        asked_for["in_chat_template"] = " ".join(talked)
    return ZeroShotResult(tuple(found), {"harness": harness().__version__, **asked_for, "max_length": length})


def _asked(options: ZeroShotOptions) -> tuple[Asked, ...]:
    return asked_of(options.tasks, options.num_fewshot, chat=options.apply_chat_template)


def _key(asked: Asked, options: ZeroShotOptions) -> dict[str, object]:
    """What a task's figures depend on besides the model."""
    files = folder_stamp(options.tasks_path) if options.tasks_path else ()
    return {
        "task": asked.name,
        "shots": asked.shots,
        "limit": options.limit,
        "files": files,
        "harness": harness().__version__,
    }


def _results(raw: dict[str, Any], asked: str, emit: Emit, *, chat: bool) -> tuple[TaskResult, ...]:
    """The figures of a task that was asked for, or of its members; ``chat``: whether it was put in a chat template."""
    shown = _shown(raw, asked)
    members = {member for names in raw.get("group_subtasks", {}).values() for member in names}
    if silent_tasks := [name for name in raw["configs"] if name not in shown and name not in members]:
        emit(Notice(f"--tasks {', '.join(silent_tasks)}: lm-evaluation-harness gave no figure for it"))
    return tuple(_task(raw, name, chat=chat) for name in shown)


def _shown(raw: dict[str, Any], asked: str) -> list[str]:
    """The task itself, or where it stands for several without a mean of its own these."""
    if _metrics(raw, asked):
        return [asked]
    return [name for name in raw["configs"] if name != asked and _metrics(raw, name)]


def _task(raw: dict[str, Any], name: str, *, chat: bool) -> TaskResult:
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
        _correct(samples := _samples(raw, name, chat=chat), values),
        _answers(name, samples, values),
        _digest(samples, "prompt_hash"),
        _digest(samples, "doc_hash"),
    )


def _answers(name: str, samples: list[dict[str, Any]], metrics: Mapping[str, str]) -> dict[str, str]:
    """Raises: NumericsError naming the task."""
    try:
        return answers(samples, metrics)
    except NumericsError as error:
        raise NumericsError(f"task {name}, {error}") from error


def _samples(raw: dict[str, Any], name: str, *, chat: bool) -> list[dict[str, Any]]:
    """The log of a task, in the order of its items; of a group of tasks, those of its members one behind the other.

    Every entry has the delimiter that its task puts before an answer.
    """
    members = raw.get("group_subtasks", {}).get(name)
    if members:
        return [sample for member in members for sample in _samples(raw, member, chat=chat)]
    before = delimiter(raw["configs"].get(name, {}), chat=chat)
    log = sorted(raw.get("samples", {}).get(name, []), key=lambda sample: sample["doc_id"])
    return [{**sample, "delimiter": before} for sample in log]


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


def _digest(samples: list[dict[str, Any]], of: str) -> str:
    """A digest of the items' digests: of the words in which they were put, or of the items themselves; empty where
    the log does not say.
    """
    words = [f"{sample['doc_id']} {sample[of]}" for sample in samples if of in sample]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16] if words else ""
