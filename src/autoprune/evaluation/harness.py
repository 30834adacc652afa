"""lm-evaluation-harness, unforked: its list of tasks, and a model in memory that is asked one of them."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autoprune.errors import AutoPruneError, DataError, RecipeError
from autoprune.evaluation.bars import bars_told
from autoprune.events import Emit
from autoprune.recipe.task_sets import Asked


class Respondent:
    """A model in memory with its tokenizer, as the harness asks it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int) -> None:
        _ = harness()
        from lm_eval.models.huggingface import HFLM

        # A copy of the tokenizer, because it may get a padding token.
        self._held = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch)
        self.max_length: int = self._held.max_length

    def ask(self, asked: Asked, *, chat: bool, limit: int | None, manager: Any, emit: Emit) -> dict[str, Any]:
        """What the harness says of a task, with its log of every sample; ``chat``: in the chat template.

        Raises: DataError if the task's data can't be fetched.
        """
        try:
            with bars_told(emit):
                raw: dict[str, Any] = harness().simple_evaluate(
                    model=self._held,
                    tasks=[asked.name],
                    num_fewshot=asked.shots,
                    limit=limit,
                    task_manager=manager,
                    log_samples=True,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                )
        except OSError as error:  # ConnectionError is one
            raise no_data(asked.name, error) from error
        return raw


def harness() -> Any:
    """The package. Raises: RecipeError if it is not installed."""
    try:
        import lm_eval
    except ImportError as error:
        raise RecipeError(
            "zero-shot evaluation needs lm-evaluation-harness, which is not installed: pip install lm-eval"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def delimiter(config: Mapping[str, Any], *, chat: bool) -> str:
    """What the harness puts before an answer of a multiple-choice task: in a chat template nothing, unless the task
    begins the answer itself and ends that without a space.
    """
    prefix = config.get("gen_prefix")
    own = str(config.get("target_delimiter", " "))
    return own if not chat or (prefix and not str(prefix)[-1].isspace()) else ""


def no_data(task: str, error: BaseException) -> AutoPruneError:
    """What to say when a task can't be loaded."""
    while not isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        return RecipeError(
            f"--tasks {task}: its own code needs the package {error.name}, which is not installed ({reason}); install"
            " it, or leave the task out"
        )
    return DataError(
        f"--tasks {task}: its data can't be had ({reason}); without a network give tasks of your own by --tasks_path"
        " FOLDER"
    )


def task_manager(names: Sequence[str], folder: str | None) -> Any:
    """The harness's list of tasks, and those in the folder.

    Reading its own takes seconds: done once, and not at all if all tasks are the user's.
    """
    if not folder:
        return listed(None, (), defaults=True)
    stamp = folder_stamp(folder)
    own = listed(folder, stamp, defaults=False)
    plain = all(task in own.all_subtasks for task in names)  # a group may have members from the harness's list
    return own if plain else listed(folder, stamp, defaults=True)


def folder_stamp(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files that tasks are made of."""
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".yaml", ".py"))
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)


@functools.lru_cache(maxsize=2)
def listed(folder: str | None, stamp: tuple[object, ...], *, defaults: bool) -> Any:
    """``stamp`` changes when a file in the folder does."""
    _ = harness()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=defaults)
