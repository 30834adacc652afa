"""Text -> token ids, token files, and the check that ids belong to the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor

from autoprune.data.sources import Source
from autoprune.errors import DataError
from autoprune.recipe.checks import short
from autoprune.storage.files import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TENSOR = "input_ids"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TokenisedText:
    """One text and its ``ids [tokens]``; ``bos_token_added`` tells whether the tokenizer put its start token before
    them.
    """

    text: str
    ids: Int64[Tensor, " tokens"]
    bos_token_added: bool
    encoding: Any

    def utf8_bytes(self, count: int) -> int | None:
        """Bytes of text that the first ``count`` tokens stand for; None if the tokenizer can't tell (a slow one)."""
        if not getattr(self.encoding, "is_fast", False):
            return None
        # A special token at the end stands for no text: then the token before it says how far the text went.
        for position in range(count - 1, -1, -1):
            if (span := self.encoding.token_to_chars(position)) is not None:
                return len(self.text[: span.end].encode("utf-8"))
        return 0


def tokenise(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> TokenisedText:
    """Tokenises a text as a whole, of any length, with the ``special`` tokens that the tokenizer adds by default; a
    rendered conversation has its own in it.
    """
    encoding = _encoded(tokenizer, text, special=special)
    ids = torch.tensor(encoding["input_ids"], dtype=torch.int64)
    bos = tokenizer.bos_token_id
    return TokenisedText(text, ids, bool(bos is not None and len(ids) and ids[0] == bos), encoding)


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    """Tokens of each text. Many texts in one call are tokenised in parallel."""
    return [len(ids) for ids in _encoded(tokenizer, texts)["input_ids"]]


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str | list[str], *, special: bool = True) -> Any:
    """Raises: DataError for half a surrogate pair, which no tokenizer takes."""
    # verbose=False: that a text is longer than the model's context is expected here, and no reason to warn.
    options = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
    try:
        return tokenizer(text, add_special_tokens=special, **options)
    except (TypeError, ValueError) as error:  # each kind of tokenizer has its own
        half = _SURROGATE.search(text if isinstance(text, str) else "\n".join(text))
        if half is None:
            raise
        around = half.string[max(0, half.start() - 20) : half.end()]
        raise DataError(
            f"a text holds half of a surrogate pair, which is no character ({short(around)}); take such out:"
            " text.encode('utf-8', 'ignore').decode()"
        ) from error


def read_token_rows(source: Source, seqlen: int) -> Int64[Tensor, "samples seqlen"]:
    """All rows of a token file (tensor ``input_ids``, int64 ``[samples, seqlen]``), or of token ids from Python.

    Raises: DataError for a damaged file, a missing tensor, a wrong dtype or shape, no rows, or rows of another length.
    """
    ids = given_ids(source) if source.given else _from_file(source)
    if ids.shape[1] != seqlen:
        remedy = f"set --seqlen {ids.shape[1]}" + (
            f" or save the rows cut to {seqlen}" if ids.shape[1] > seqlen else " or save longer rows"
        )
        raise DataError(f"{source.label}: its rows are {ids.shape[1]} tokens long, but seqlen is {seqlen}; {remedy}")
    return ids


def given_ids(source: Source) -> Int64[Tensor, ...]:
    """Token ids from Python: ``[tokens]`` of one running text, or ``[samples, seqlen]``."""
    assert source.given is not None and source.given.ids is not None, f"{source.label} holds no token ids"
    return source.given.ids


def ids_facts(source: Source, purpose: str, tokens: int) -> dict[str, Any]:
    """What the record says of token ids that no text was read for."""
    named = source.name if source.given else source.file.name
    return {
        "source": named,
        "kind": source.kind,
        "purpose": purpose,
        **({} if source.given else {"file": named}),
        "sha256": source.given.sha256 if source.given else file_sha256(source.file),
        "documents": None,
        "tokens": tokens,
        "bos_token_added": None,
        "utf8_bytes": None,
    }


def _from_file(source: Source) -> Int64[Tensor, "samples seqlen"]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source.file, framework="pt") as file:
            names = sorted(file.keys())
            if TENSOR not in names:
                held = ", ".join(names) or "none"
                raise DataError(
                    f"{source.label}: no tensor `{TENSOR}`, only {held}; save int64 ids [samples, seqlen] under that"
                    " name"
                )
            ids: Tensor = file.get_tensor(TENSOR)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{source.label}: not a readable safetensors file ({error}); write or download it again"
        ) from error
    if ids.dtype != torch.int64:
        raise DataError(
            f"{source.label}: `{TENSOR}` is {str(ids.dtype).removeprefix('torch.')}, not int64; convert it with"
            " .to(torch.int64)"
        )
    if ids.dim() != 2 or 0 in ids.shape:
        raise DataError(
            f"{source.label}: `{TENSOR}` has shape {list(ids.shape)}; it must be [samples, seqlen] with at least one"
            " of each"
        )
    return ids


def check_ids(ids: Int64[Tensor, "samples seqlen"], vocab_size: int, source: Source) -> None:
    """Raises: DataError naming the first id outside ``[0, vocab_size)`` and where it is."""
    outside = (ids < 0) | (ids >= vocab_size)
    if not outside.any():
        return
    row, column = (int(i) for i in outside.nonzero()[0])
    whose = (
        "make the token ids with this model's tokenizer"
        if source.kind in ("tokens", "stream")
        else "use the tokenizer that belongs to this model"
    )
    raise DataError(
        f"{source.label}: token id {int(ids[row, column])} at window {row}, position {column} is outside the model's"
        f" vocabulary of {vocab_size} (ids 0 to {vocab_size - 1}); {whose}"
    )
