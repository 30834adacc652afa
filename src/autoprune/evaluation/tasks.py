"""Zero-shot accuracy through lm-evaluation-harness, unforked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autoprune.errors import DataError, RecipeError
from autoprune.model.events import Emit, Notice, Phase
from autoprune.recipe import ZeroShotOptions
from autoprune.report.results import TaskResult, ZeroShotResult

METRICS = ("acc", "acc_norm")


def check_tasks(options: ZeroShotOptions) -> None:
    """Finds every task before long work begins.

    Raises: RecipeError if the harness is not installed; DataError naming a task or folder that does not exist.
    """
    if options.tasks_path and not Path(options.tasks_path).is_dir():
        raise DataError(f"--tasks_path {options.tasks_path}: there is no such directory; give the folder that holds the tasks' YAML files")
    known = set(_task_manager(options).all_tasks)
    if missing := [task for task in options.tasks if task not in known]:
        where = f" nor in --tasks_path {options.tasks_path}" if options.tasks_path else "; a task of your own needs --tasks_path FOLDER"
        raise DataError(f"--tasks {missing[0]}: lm-evaluation-harness knows no task of that name{where}")


def zeroshot(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions, *, batch: int, emit: Emit) -> ZeroShotResult:
    """Accuracy of a model in memory on every task; samples and prompts are the harness's own.

    Raises: DataError if a task's data can't be fetched.
    """
    lm_eval = _harness()
    from lm_eval.models.huggingface import HFLM

    emit(Phase(f"zero-shot: {', '.join(options.tasks)}"))
    held = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    try:
        raw = lm_eval.simple_evaluate(
            model=held,
            tasks=list(options.tasks),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=_task_manager(options),
            log_samples=False,
        )
    except (OSError, ConnectionError) as error:
        raise DataError(f"the data of {', '.join(options.tasks)} can't be fetched ({error}); without network give local tasks by --tasks_path") from error
    if options.limit:
        emit(Notice(f"only the first {options.limit} samples of every task were used (--limit): fit for a trial, not for a paper"))
    return ZeroShotResult(
        tuple(_task(raw, name) for name in raw["results"]),
        {"harness": raw["lm_eval_version"], "num_fewshot": options.num_fewshot, "limit": options.limit, "batch_size": batch, "max_length": raw.get("max_length")},
    )


def _task(raw: dict[str, Any], name: str) -> TaskResult:
    numbers = raw["results"][name]
    values = {metric: float(numbers[f"{metric},none"]) for metric in METRICS if isinstance(numbers.get(f"{metric},none"), (int, float))}
    errors = {metric: float(numbers[f"{metric}_stderr,none"]) for metric in values if isinstance(numbers.get(f"{metric}_stderr,none"), (int, float))}
    count = raw.get("n-samples", {}).get(name, {}).get("effective")
    return TaskResult(name, str(raw["versions"].get(name, "")), raw["n-shot"].get(name), count, values, errors)


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise RecipeError("zero-shot evaluation needs lm-evaluation-harness: pip install 'autoprune[zeroshot]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _task_manager(options: ZeroShotOptions) -> Any:
    _harness()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=options.tasks_path)
