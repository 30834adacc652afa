"""What the user's word means: a named set, a hub dataset or a local file. Touches the disk only to see what is
there.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import DataError
from autoprune.recipe.checks import LONGEST_NAME, may_be_a_path
from autoprune.storage.locate import DEMO

if TYPE_CHECKING:
    from autoprune.data.given import Given

NAMED = ("c4", "wikitext2", "ptb")
SUFFIXES = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json.gz": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".safetensors": "tokens",
}
# Kinds that are one running text: their documents are joined and tokenised once. In all others a sample stays inside
# one document.
ONE_TEXT = ("txt", "wikitext2", "ptb")
GIVEN = re.compile(r"\(sha256 [0-9a-f]{12}\)$")  # the end of the word for what was handed over in Python
_HUB_WORD = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(:(?P<config>[\w.+-]+))?")


@dataclass(frozen=True)
class Source:
    """One place that texts or token ids come from.

    ``kind`` is c4, wikitext2, ptb, hub, txt, jsonl, parquet or tokens; ``name`` is the user's own word and ``flag``
    where it was said, both for messages. Local kinds have a ``path``, kind hub has a ``repo`` and perhaps a
    ``config``. What was ``given`` in Python is of kind strings, stream (token ids of one text) or tokens (windows).
    """

    kind: str
    name: str
    flag: str
    path: Path | None = None
    repo: str | None = None
    config: str | None = None
    given: Given | None = None

    @property
    def label(self) -> str:
        """How messages call it: the flag and the user's own word."""
        return f"{self.flag} {self.name}"

    @property
    def file(self) -> Path:
        """The path of a local source."""
        assert self.path is not None, f"{self.label} is no local file"
        return self.path


def parse_source(word: str, flag: str) -> Source:
    """Decides what a word means; reads nothing yet.

    Raises: DataError naming word, flag and remedy for a missing file, a directory, an unknown suffix or an unknown
    name.
    """
    if word in NAMED:
        return Source(word, word, flag)
    if word == "demo":
        return Source(
            "txt", word, flag, path=DEMO / ("calibration.txt" if flag == "--calibration_data" else "heldout.txt")
        )
    if not word.strip():
        raise DataError(f"{flag} is empty; give {_choices()}")
    if not may_be_a_path(word):
        raise _unknown(word, flag)
    path = Path(word).expanduser()
    kind = kind_of(path)
    if path.is_dir():
        raise DataError(f"{flag} {word} is a directory; name one file inside it ({', '.join(SUFFIXES)})")
    if path.exists():
        if kind is None:
            raise DataError(f"{flag} {word}: {_remedy(path)}")
        return Source(kind, word, flag, path=path)
    if kind is not None:
        raise DataError(
            f"{flag} {word}: no such file; check the path, which is looked up from the directory you started the"
            " program in"
        )
    if match := _HUB_WORD.fullmatch(word):
        return Source("hub", word, flag, repo=match["repo"], config=match["config"])
    raise _unknown(word, flag)


def _unknown(word: str, flag: str) -> DataError:
    """What to say of a word that names nothing."""
    if GIVEN.search(word):
        return DataError(
            f"{flag} {word}: these were handed over in Python and are in no file; hand them over again, to"
            " autoprune.run or autoprune.prune"
        )
    close = difflib.get_close_matches(word.lower(), NAMED, n=1)
    hint = f"did you mean {close[0]}? Otherwise " if close else ""
    if reads_like_text(word):
        hint = "a text itself is given in Python, in a list: [text]. Otherwise "
    return DataError(f"{flag} {_quoted(word)}: neither a known set nor an existing file; {hint}give {_choices()}")


def reads_like_text(word: str) -> bool:
    """Whether a string that names no source looks like a text itself: by its spaces, or its length."""
    return len(word.split()) > 1 or len(word.encode(errors="surrogatepass")) > LONGEST_NAME


def _quoted(word: str) -> str:
    """At most a line of it."""
    line = " ".join(word.split())
    return line if len(line) <= 80 else f"{line[:80]}…"


def _remedy(path: Path) -> str:
    """What to do with a file of a format that is not read."""
    name = path.name.lower()
    if name.endswith((".csv", ".tsv")):
        more = ", sep='\\t'" if name.endswith(".tsv") else ""
        code = f"import pandas; pandas.read_csv({str(path)!r}{more}).to_parquet({f'{path}.parquet'!r})"
        return f"tables are read as parquet; write it as one, in Python: {code} and give {path}.parquet"
    if name.endswith((".gz", ".zst", ".bz2", ".xz", ".zip")):
        return f"it is compressed; unpack it and give what was in it ({', '.join(SUFFIXES)})"
    return (
        "can't tell the format from this name; call it .txt if it is plain text, .jsonl if it is JSON lines, or"
        f" convert it to one of {', '.join(SUFFIXES)}"
    )


def kind_of(path: Path) -> str | None:
    """The kind that a file name's suffix stands for, None if no kind has it."""
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)


def _choices() -> str:
    return f"{', '.join(NAMED)}, demo, a hub dataset owner/name[:config], or a file that ends in {', '.join(SUFFIXES)}"
