"""Named, hub or local sources -> documents. Imports torch, transformers and datasets nowhere at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from autoprune.data.chat import Rendered, template_digest
from autoprune.data.hub import MIRROR_VARIABLE, Purpose, read_hub
from autoprune.data.local import read_local
from autoprune.data.sources import NAMED, ONE_TEXT, SUFFIXES, Source, parse_source
from autoprune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "MIRROR_VARIABLE",
    "NAMED",
    "ONE_TEXT",
    "SUFFIXES",
    "Corpus",
    "Purpose",
    "Source",
    "parse_source",
    "read_corpus",
]

# How documents become one text: (calibration, evaluation). The papers' programs join so, and perplexity depends on it.
_JOINERS: dict[str, dict[str, str]] = {
    "wikitext2": {"calibration": " ", "evaluation": "\n\n"},
    "ptb": {"calibration": " ", "evaluation": " "},
    "c4": {"calibration": " ", "evaluation": " "},
}
_LOCAL_JOINER = "\n\n"


@dataclass(frozen=True)
class Corpus:
    """Documents, and how they are joined where one text is wanted; if it ``talks``, they are conversations.

    ``documents`` may be a lazy view of a dataset on disk: index it, or walk over it once, but don't copy it.
    """

    source: Source
    documents: Sequence[Any]
    joiner: str
    provenance: dict[str, Any]
    talks: bool = False

    @property
    def text(self) -> str:
        """All documents as one text."""
        return self.joiner.join(self.documents)

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> Corpus:
        """Conversations as texts, special tokens included; what is text stays as it is.

        Raises: DataError if the tokenizer has no chat template.
        """
        if not self.talks:
            return self
        facts = {**self.provenance, "chat_template": template_digest(tokenizer)}
        return replace(self, documents=Rendered(self.source, self.documents, tokenizer), joiner="", provenance=facts)


def read_corpus(
    source: Source, purpose: Literal["calibration", "evaluation"], datasets_cache_dir: str | None = None
) -> Corpus:
    """The documents of a source: the training split for calibration, the test split for evaluation; a local file as it
    is.

    Raises: DataError for anything that can't be fetched or read, and for texts of white space only.
    """
    if source.kind == "tokens":
        raise ValueError(f"{source.label} holds token ids and no documents")
    documents: Sequence[Any]
    if source.given is not None and source.given.documents is not None:
        found = {"field": source.given.field} if source.given.field else {}
        documents, origin = source.given.documents, {"sha256": source.given.sha256, **found}
    elif source.path is None:
        documents, origin = read_hub(source, purpose, datasets_cache_dir)
    else:
        documents, origin = read_local(source)
    talks = len(documents) > 0 and not isinstance(documents[0], str)
    if not talks and not any(document.strip() for document in documents):
        empty = f"only white space in {len(documents)} documents" if len(documents) else "no documents"
        raise DataError(f"{source.label}: {empty}; give a source that holds text")
    shown = source.name if source.path is None else source.path.name
    provenance = {"source": shown, "kind": source.kind, "purpose": purpose, **origin, "documents": len(documents)}
    joiner = _JOINERS[source.kind][purpose] if source.kind in _JOINERS else _LOCAL_JOINER
    return Corpus(source, documents, joiner, provenance, talks)
