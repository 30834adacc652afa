"""Which field of a record holds the text: decided by names and kinds, and never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["text", "conversation", "nested", "other"]
SPEAKERS = ({"role", "content"}, {"from", "value"})  # what the turns of a conversation consist of
TEXTS = ("content", "document", "body", "article", "passage", "story", "sentence", "raw_content", "code")
# Words that name, date or sort a text, or say that its strings are written conversations; a field of such a name holds
# no text.
_ABOUT = re.compile(
    r"(?:^|_|-|\W)(?:u?uid|uuid|guid|ids?|idx|index|url|uri|link|permalink|slug|hash|sha\d*|md5|digest|checksum|key|"
    r"name|title|number|no|ref|reference|source|origin|dataset|lang|language|label|tag|split|subset|category|domain|"
    r"topic|date|time|timestamp|created|updated|author|user|speaker|role|model|license|filename|file|path|type|kind|"
    r"format|version|status|thread|session|messages|conversations?|dialogs?|dialogues?|turns)$"
    r"|^(?:doc|q|p|s|row|item|sample|example|question|record|conversation|thread|session)(?:ids?|idx|nos?)$"
    r"|(?-i:[a-z](?:Ids?|IDs?|Idx|Index|Url|URL|Key|Hash|Name|Title|Path|Date)$)",
    re.IGNORECASE,
)

_TALKS = re.compile(r"messages|conversations?|dialogs?|dialogues?|turns", re.IGNORECASE)


def text_field(kinds: Mapping[str, Kind]) -> str | None:
    """Which field holds the documents: ``text``, else the only field of strings whose name does not speak against it.

    None when that doesn't decide it, as where conversations or nested fields may hold the text instead.
    """
    if "text" in kinds:
        # A `text` of another type means that the data is not what it seems; taking another column would be worse.
        return "text" if kinds["text"] == "text" else None
    strings = [name for name, kind in kinds.items() if kind == "text"]
    if "conversation" in kinds.values() or len(strings) != 1 or _ABOUT.search(strings[0]):
        return None
    return strings[0] if strings[0].lower() in TEXTS or "nested" not in kinds.values() else None


def document_field(kinds: Mapping[str, Kind]) -> str | None:
    """Which field holds the documents, as texts or as conversations: ``text``, else the only field of conversations,
    else as ``text_field`` says.
    """
    talks = [name for name, kind in kinds.items() if kind == "conversation"]
    return talks[0] if len(talks) == 1 and "text" not in kinds else text_field(kinds)


def why_not(kinds: Mapping[str, Kind], word: str = "column") -> str:
    """What is wrong with fields of which none is plainly the text, and what to do; ``word`` is their name."""
    if kinds.get("text", "text") != "text":
        return f"its {word} `text` is no string; make it one, or give another file"
    several = [name for name, kind in kinds.items() if kind == "conversation"]
    if len(several) > 1:
        return f"more than one {word} holds conversations ({', '.join(several)}); keep the one that is meant"
    if several:
        talks = several[0]
        return (
            f"its {word} `{talks}` holds conversations, which are not rendered here; write them as texts once, in"
            f' Python, a line {{"text": tokenizer.apply_chat_template(row["{talks}"], tokenize=False)}} for each row'
            ' (turns of "from" and "value" have to become "role" and "content" first)'
        )
    if empty := [name for name, kind in kinds.items() if kind == "nested" and _TALKS.fullmatch(name)]:
        return (
            f"its {word} `{empty[0]}` holds no turns of role and content, or of from and value, that tell what it is;"
            " remove empty conversations"
        )
    strings = [name for name, kind in kinds.items() if kind == "text"]
    if len(strings) == 1:
        only = f"its only string {word} is `{strings[0]}`, which looks like no text"
    else:
        only = f"no string {word} `text` and no single other string {word}"
    return f"{only}; rename the {word} that holds the text to `text`"


def kind_of_value(value: Any) -> Kind:
    """The kind of a value as JSON has it."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value and isinstance(value[0], dict) and is_turn(value[0]):
        return "conversation"
    return "nested" if isinstance(value, (list, dict)) else "other"


def is_turn(names: Any) -> bool:
    """Whether these are the fields of a turn in a conversation."""
    return any(speaker <= set(names) for speaker in SPEAKERS)
