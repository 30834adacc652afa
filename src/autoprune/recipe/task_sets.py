"""Sets of zero-shot tasks under one name, each with the examples that are usually reported. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autoprune.recipe.options import ZEROSHOT_TASKS

SETS: dict[str, dict[str, int | None]] = {  # by task: examples before each question, None: as the task says
    "classic": dict.fromkeys(ZEROSHOT_TASKS),
    "knowledge": {"mmlu": 5},
    "reasoning": {"gsm8k": 5, "ifeval": 0},
}
CHATTY = ("reasoning",)  # sets that are put into the tokenizer's chat template where it has one


@dataclass(frozen=True)
class Asked:
    """A task, and how it is to be put: ``chat`` is True or False, or None: in the chat template if there is one."""

    name: str
    shots: int | None
    chat: bool | None


def asked_of(tasks: Iterable[str], num_fewshot: int | None, *, chat: bool) -> tuple[Asked, ...]:
    """The tasks that words stand for, each once, in their order; examples and template that are asked for count more
    than those of a set.
    """
    found: dict[str, Asked] = {}
    for word in tasks:
        members = SETS.get(word, {word: None})
        wanted = True if chat else None if word in CHATTY else False
        for name, usual in members.items():
            found.setdefault(name, Asked(name, usual if num_fewshot is None else num_fewshot, wanted))
    return tuple(found.values())
