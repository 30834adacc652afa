"""Documents -> token windows ``[samples, seqlen]``, for calibration and for perplexity, as the papers' programs cut
them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor

from autoprune.data.texts import ONE_TEXT, Corpus, Purpose, Source, parse_source, read_corpus
from autoprune.data.tokens import check_ids, given_ids, ids_facts, read_token_rows, token_counts, tokenise
from autoprune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALIBRATION_FLAG = "--calibration_data"
SHORTEST = 2  # tokens of a window in which anything is predicted
C4_WINDOWS = 256  # the papers cut the validation text of c4 at 256 * seqlen tokens
# After so many documents in a row that were too short, look whether any is long enough at all.
FRUITLESS_DRAWS = 10_000
_SWEEP = 512


@dataclass(frozen=True)
class Windows:
    """Token windows and where they came from.

    ``ids`` is int64 ``[samples, seqlen]``. ``provenance`` is plain JSON: source, kind, purpose; dataset, config,
    data_files, split, revision, commit, mirror for the hub or file and sha256 for a local file; documents; tokens (in
    all of the text; None where documents were drawn and the rest never tokenised), windows, distinct_windows, seqlen,
    seed (None where nothing is drawn), bos_token_added (None for token ids), utf8_bytes (of text under all windows
    together, for bits per byte; None if unknown or for calibration, where windows overlap) and fingerprint.
    """

    ids: Int64[Tensor, "samples seqlen"]
    provenance: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """sha256 of shape and ids, in hex: equal for equal windows on every machine."""
        digest = hashlib.sha256(f"{self.ids.shape[0]}x{self.ids.shape[1]}:".encode())
        digest.update(self.ids.contiguous().numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()


def calibration_windows(
    word: str | Source,
    load_tokenizer: Callable[[], PreTrainedTokenizerBase],
    *,
    nsamples: int,
    seqlen: int,
    seed: int,
    vocab_size: int,
    datasets_cache_dir: str | None = None,
) -> Windows:
    """Draws ``nsamples`` windows with ``random.Random(seed)``.

    From one text (.txt, wikitext2, ptb, or token ids in one row): starts anywhere. From documents (c4, hub, .jsonl,
    .parquet, or a list of strings): inside documents of more than ``seqlen`` tokens. From conversations: at the
    beginning of one, and on with those that follow it. A token file, or rows of token ids, gives its first rows and
    needs no tokenizer.
    Raises: DataError if the source can't be read, is too short, or its ids don't fit ``vocab_size``.
    """
    source = parse_source(word, CALIBRATION_FLAG) if isinstance(word, str) else word
    if _is_running(source, seqlen):
        ids = given_ids(source).flatten()
        begins = _starts(source, len(ids), nsamples, seqlen, random.Random(seed))
        cut = torch.stack([ids[start : start + seqlen] for start in begins])
        facts = {**ids_facts(source, "calibration", len(ids)), "seed": seed, "distinct_windows": len(set(begins))}
        return _windows(source, cut, facts, vocab_size)
    if source.kind == "tokens":
        return _first_rows(source, nsamples, seqlen, vocab_size)
    corpus = read_corpus(source, "calibration", datasets_cache_dir)
    tokenizer = load_tokenizer()
    corpus = corpus.rendered(tokenizer)
    drawn, starts, known = _draw(corpus, tokenizer, nsamples, seqlen, random.Random(seed))
    facts = {
        **corpus.provenance,
        **known,
        "seed": seed,
        "distinct_windows": len(set(starts)),
        "utf8_bytes": None,
    }
    return _windows(source, torch.stack(drawn), facts, vocab_size)


def _draw(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, nsamples: int, seqlen: int, rng: random.Random
) -> tuple[list[Tensor], list[tuple[int, int]], dict[str, Any]]:
    """Windows, the document and the place where each begins, and what the record says of the tokens."""
    if corpus.talks:
        talks = [_conversations(corpus, tokenizer, seqlen, rng) for _ in range(nsamples)]
        return [ids for _, ids in talks], [(i, 0) for i, _ in talks], {"tokens": None, "bos_token_added": False}
    if corpus.source.kind in ONE_TEXT:
        text = tokenise(tokenizer, corpus.text)
        starts = [(0, start) for start in _starts(corpus.source, len(text.ids), nsamples, seqlen, rng)]
        drawn = [text.ids[start : start + seqlen] for _, start in starts]
        return drawn, starts, {"tokens": len(text.ids), "bos_token_added": text.bos_token_added}
    pool = _Documents(corpus.source, corpus.documents, tokenizer, seqlen)
    starts = [pool.draw(rng) for _ in range(nsamples)]
    drawn = [pool.ids(document)[start : start + seqlen] for document, start in starts]
    return drawn, starts, {"tokens": None, "bos_token_added": pool.bos_token_added}


def evaluation_windows(
    word: str | Source,
    load_tokenizer: Callable[[], PreTrainedTokenizerBase],
    *,
    seqlen: int,
    vocab_size: int,
    max_windows: int | None = None,
    datasets_cache_dir: str | None = None,
    flag: str = "--eval_data",
) -> Windows:
    """Cuts the whole text, tokenised once, into non-overlapping windows; what is left over at its end is dropped.

    ``max_windows`` keeps the first ones only. Rows of token ids are the windows, and need no tokenizer.
    Raises: DataError if the source can't be read, gives no window, or its ids don't fit ``vocab_size``.
    """
    source = parse_source(word, flag) if isinstance(word, str) else word
    if _is_running(source, seqlen):
        ids = given_ids(source).flatten()
        count = min(_whole_windows(source, len(ids), seqlen), max_windows or len(ids))
        facts = {**ids_facts(source, "evaluation", len(ids)), "seed": None, "distinct_windows": count}
        return _windows(source, ids[: count * seqlen].view(count, seqlen), facts, vocab_size)
    if source.kind == "tokens":
        rows = read_token_rows(source, seqlen)
        return _from_rows(source, rows, rows[:max_windows], "evaluation", vocab_size)
    corpus = read_corpus(source, "evaluation", datasets_cache_dir)
    tokenizer = load_tokenizer()
    corpus = corpus.rendered(tokenizer)
    text = tokenise(tokenizer, corpus.text, special=not corpus.talks)
    count = _whole_windows(source, len(text.ids), seqlen)
    limits = [limit for limit in (max_windows, C4_WINDOWS if source.kind == "c4" else None) if limit is not None]
    count = min([count, *limits])
    facts = {
        **corpus.provenance,
        "tokens": len(text.ids),
        "seed": None,
        "bos_token_added": text.bos_token_added,
        "distinct_windows": count,
        "utf8_bytes": text.utf8_bytes(count * seqlen),
    }
    return _windows(source, text.ids[: count * seqlen].view(count, seqlen), facts, vocab_size)


def _is_running(source: Source, seqlen: int) -> bool:
    """Whether token ids from Python are one running text: so is a single row longer than a window, as a tokenizer
    returns it.
    """
    if source.kind != "tokens" or not source.given:
        return source.kind == "stream"
    rows, length = given_ids(source).shape
    return rows == 1 and length > seqlen


def _first_rows(source: Source, nsamples: int, seqlen: int, vocab_size: int) -> Windows:
    rows = read_token_rows(source, seqlen)
    if len(rows) < nsamples:
        raise DataError(
            f"{source.label}: holds {len(rows)} rows, but {nsamples} are wanted; set --nsamples {len(rows)} or save"
            " more rows"
        )
    return _from_rows(source, rows, rows[:nsamples], "calibration", vocab_size)


def _whole_windows(source: Source, tokens: int, seqlen: int) -> int:
    if tokens < seqlen:
        raise DataError(
            f"{source.label}: the text has {tokens} tokens, but one window needs {seqlen}; "
            f"{f'set --seqlen to {tokens} or less, or ' if tokens >= SHORTEST else ''}give a longer text"
        )
    return tokens // seqlen


def _starts(source: Source, tokens: int, nsamples: int, seqlen: int, rng: random.Random) -> list[int]:
    """Where the windows begin in one text. The last start of a text is never drawn, as in the published programs."""
    if tokens <= seqlen:
        raise DataError(
            f"{source.label}: the text has {tokens} tokens, but windows of {seqlen} need at least {seqlen + 1}; "
            f"{f'set --seqlen to less than {tokens}, or ' if tokens > SHORTEST else ''}give a longer text"
        )
    return [rng.randint(0, tokens - seqlen - 1) for _ in range(nsamples)]


def _conversations(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, seqlen: int, rng: random.Random
) -> tuple[int, Int64[Tensor, " seqlen"]]:
    """A conversation drawn uniformly, and the tokens of it and of those behind it, up to ``seqlen``; behind the last
    one comes the first.
    """
    count = len(corpus.documents)
    first = rng.randint(0, count - 1)
    parts, length = list[Tensor](), 0
    for i in range(first, first + seqlen + count):  # conversations without a token must not go on for ever
        parts.append(tokenise(tokenizer, corpus.documents[i % count], special=False).ids)
        length += len(parts[-1])
        if length >= seqlen:
            return first, torch.cat(parts)[:seqlen]
    raise DataError(f"{corpus.source.label}: its conversations hold next to no tokens; give a source that holds text")


class _Documents:
    """Documents that are tokenised when they are drawn, not before."""

    def __init__(
        self, source: Source, documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, seqlen: int
    ) -> None:
        self.source, self.documents, self.tokenizer, self.seqlen = source, documents, tokenizer, seqlen
        self.lengths: dict[int, int] = {}
        self.bos_token_added = False
        self._long: dict[int, Tensor] = {}

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Document and start of a window: documents uniformly until one has more than ``seqlen`` tokens, then the
        start.
        """
        fruitless = 0
        while True:
            index = rng.randint(0, len(self.documents) - 1)
            if self._length(index) > self.seqlen:
                return index, rng.randint(0, self._length(index) - self.seqlen - 1)
            fruitless += 1
            if fruitless == min(FRUITLESS_DRAWS, len(self.documents)):
                self._require_a_long_one()

    def ids(self, index: int) -> Int64[Tensor, " tokens"]:
        """The ids of a document that was drawn."""
        if index not in self._long:
            self._tokenise(index)
        return self._long[index]

    def _length(self, index: int) -> int:
        if index not in self.lengths:
            self._tokenise(index)
        return self.lengths[index]

    def _tokenise(self, index: int) -> None:
        """Notes the length of a document, and keeps its ids if windows can be cut from it."""
        text = tokenise(self.tokenizer, self.documents[index])
        self.lengths[index] = len(text.ids)
        if len(text.ids) > self.seqlen:
            self._long[index], self.bos_token_added = text.ids, text.bos_token_added

    def _require_a_long_one(self) -> None:
        """Ends a search that can't succeed. Uses no random number, so that it changes no sample."""
        unseen = [index for index in range(len(self.documents)) if index not in self.lengths]
        for at in range(0, len(unseen), _SWEEP):
            if max(self.lengths.values()) > self.seqlen:
                return
            part = unseen[at : at + _SWEEP]
            self.lengths.update(
                zip(part, token_counts(self.tokenizer, [self.documents[i] for i in part]), strict=True)
            )
        if (longest := max(self.lengths.values())) <= self.seqlen:
            shorter = f"set --seqlen to less than {longest}, or " if longest > SHORTEST + 1 else ""
            raise DataError(
                f"{self.source.label}: the longest of its {len(self.documents)} documents has {longest} tokens, but a"
                f" window of {self.seqlen} needs one of at least {self.seqlen + 1}; {shorter}{_joined(self.source)}"
            )


def _joined(source: Source) -> str:
    """How documents become one text, in which windows begin anywhere."""
    if source.given:
        return 'join the texts: ["\\n\\n".join(texts)]'
    return f"join the documents in one file ({source.flag} FILE.txt)"


def _from_rows(source: Source, rows: Tensor, chosen: Tensor, purpose: Purpose, vocab_size: int) -> Windows:
    """Windows that are rows of token ids."""
    facts = {
        **ids_facts(source, purpose, rows.numel()),
        "seed": None,
        "distinct_windows": len(chosen.unique(dim=0)),
    }
    return _windows(source, chosen.contiguous(), facts, vocab_size)


def _windows(source: Source, ids: Int64[Tensor, "samples seqlen"], facts: dict[str, Any], vocab_size: int) -> Windows:
    """Checks the ids and closes the record."""
    check_ids(ids, vocab_size, source)
    facts = {**facts, "windows": ids.shape[0], "seqlen": ids.shape[1]}
    return Windows(ids, {**facts, "fingerprint": Windows(ids, facts).fingerprint})
