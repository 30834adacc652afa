"""Conversations -> texts, by the tokenizer's own chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from autoprune.data.sources import Source
from autoprune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}  # what some call them
Turn = dict[str, Any]  # role, content, and what else a template may know, such as tool_calls


def turns_of(value: Any) -> list[Turn]:
    """The turns of a record's conversation, of ``role`` and ``content`` or of ``from`` and ``value``; fields besides
    these, such as ``tool_calls``, are left to the template.

    Raises: ValueError saying what is wrong with it.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("it holds no turns")
    return [_turn(number, turn) for number, turn in enumerate(value, start=1)]


def _turn(number: int, turn: Any) -> Turn:
    """Empty fields count as missing: a table has every field in every turn."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number} is no record")
    there = {str(name): item for name, item in turn.items() if item is not None}
    role, content = there.get("role") or there.get("from"), there.get("content", there.get("value"))
    if isinstance(content, (list, tuple)):
        content = _joined(number, content)
    if content is None and there.get("tool_calls"):
        content = ""  # it calls a tool and says nothing
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"turn {number} has no role or no content of text")
    others = {name: item for name, item in there.items() if name not in ("role", "content", "from", "value")}
    return {"role": ROLES.get(role, role), "content": content, **others}


def _joined(number: int, parts: Sequence[Any]) -> str:
    """Content in parts, of which only text can be read."""
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if not isinstance(text, str):
            kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"turn {number} has a part that is no text ({kind})")
    return "".join(map(str, texts))


class Rendered(Sequence[str]):
    """Conversations as texts, each rendered when it is asked for."""

    def __init__(self, source: Source, conversations: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{source.label}: it holds conversations, and the model's tokenizer has no chat template that says how"
                ' they are written; write them as texts, a line {"text": …} for each, or add a chat_template.jinja'
                " beside the tokenizer"
            )
        self._source, self._conversations, self._tokenizer = source, conversations, tokenizer

    def __len__(self) -> int:
        return len(self._conversations)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._text(i) for i in range(*index.indices(len(self)))]
        return self._text(index)

    def _text(self, index: int) -> str:
        """Raises: DataError naming a conversation that the template refuses."""
        from jinja2 import TemplateError  # what needs no template does without the package

        try:
            return str(self._tokenizer.apply_chat_template(turns_of(self._conversations[index]), tokenize=False))
        except (ValueError, TypeError, TemplateError) as error:  # a template may add what can't be added
            raise DataError(
                f"{self._source.label}: conversation {index + 1} can't be rendered by the tokenizer's chat template"
                f" ({error}); mend or remove it"
            ) from error


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Which template it was, for the record: sha256 in hex."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
