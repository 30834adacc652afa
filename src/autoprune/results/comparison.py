"""What a comparison with the dense model found: divergence by text, flips by task. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.core.mcnemar import mcnemar
from autoprune.core.shift import Estimate, PredictionShift
from autoprune.errors import DataError
from autoprune.results.codec import from_jsonable
from autoprune.results.shown import screen
from autoprune.results.table import to_html
from autoprune.results.types import EvaluationRow, TaskResult
from autoprune.results.variants import model_of

if TYPE_CHECKING:
    from pandas import DataFrame

STEM = "comparison"  # of the files that `autoprune compare` saves


@dataclass(frozen=True)
class Flips:
    """Two runs of one task on the same items."""

    task: str
    metric: str
    items: int
    changed: int  # items with another answer, right or wrong
    correct_to_wrong: int
    wrong_to_correct: int
    p_value: float  # McNemar's, two-sided: of such a difference in accuracy if both models were equally good

    @property
    def share_changed(self) -> float:
        """Share of the items, in [0, 1], whose answer is another one."""
        return self.changed / self.items

    @property
    def share_flipped(self) -> float:
        """Share of the items, in [0, 1], that became right or wrong."""
        return (self.correct_to_wrong + self.wrong_to_correct) / self.items


@dataclass(frozen=True)
class ModelComparison:
    """One model against the dense one; ``shifts`` by text, ``flips`` by task and metric."""

    model: str
    shifts: Mapping[str, PredictionShift] = field(repr=False)
    flips: tuple[Flips, ...] = ()


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models against their dense model; ``settings`` say how it was measured, ``warnings`` what should be known."""

    dense: str
    models: tuple[ModelComparison, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"{model} on {text}: divergence {shift.kld.mean:.4g} ± {shift.kld.error:.2g} nats,"
            f" same top {shift.same_top.mean:.2%}"
            for model, text, shift in self.by_text()
        ]
        flips = [
            f"{m.model} on {flip.task}: {flip.share_changed:.2%} changed" for m in self.models for flip in m.flips
        ]
        return screen(f"Comparison with {self.dense}", [*lines, *flips, *(f"warning: {w}" for w in self.warnings)])

    def _repr_html_(self) -> str:
        from autoprune.results.comparison_tables import comparison_tables

        return "".join(map(to_html, comparison_tables(self, places=False)))

    def by_text(self) -> Iterator[tuple[str, str, PredictionShift]]:
        """Model, text with its window length, and what moved there."""
        for model in self.models:
            for text, shift in model.shifts.items():
                yield model.model, f"{text} ({shift.seqlen})", shift

    def to_pandas(self) -> DataFrame:
        """One line for each model and text, with every figure in a column of its own."""
        from pandas import DataFrame

        return DataFrame([{"model": model, "text": text, **_flat(shift)} for model, text, shift in self.by_text()])


def _flat(shift: PredictionShift) -> dict[str, Any]:
    """Every figure under a name of its own: ``kld``, ``kld_error``, ``kld_median``, …"""
    found: dict[str, Any] = {}
    for name, value in ((f.name, getattr(shift, f.name)) for f in dataclasses.fields(shift)):
        if isinstance(value, Estimate):
            found |= {name: value.mean, f"{name}_error": value.error}
        elif name == "kld_spread":
            found |= {f"kld_{share}": number for share, number in dataclasses.asdict(value).items()}
        elif not isinstance(value, tuple):
            found[name] = value
    return found


def flips_between(dense: TaskResult, pruned: TaskResult) -> tuple[Flips, ...]:
    """By every accuracy for which both models say which answers they took and whether these were right; none unless
    both were asked the same items in the same words.
    """
    found = []
    for metric, was in dense.chosen.items() if same_items(dense, pruned) else ():
        now = pruned.chosen.get(metric, "")
        right = (dense.correct.get(metric, ""), pruned.correct.get(metric, ""))
        if was and len({len(word) for word in (was, now, *right)}) == 1:
            pairs = list(zip(*right, strict=True))
            down, up = pairs.count(("1", "0")), pairs.count(("0", "1"))
            changed = sum(a != b for a, b in zip(was, now, strict=True))
            found.append(Flips(dense.task, metric, len(was), changed, down, up, mcnemar(down, up)))
    return tuple(found)


def same_items(one: TaskResult, other: TaskResult) -> bool:
    """Whether both are of the same items in the same words and order, as far as the records say."""
    pairs = ((one.items, other.items), (one.documents, other.documents))
    return all(a == b for a, b in pairs if a and b) and bool(one.items) == bool(other.items)


def comparison_of(row: EvaluationRow) -> Comparison:
    """What a row says of its distance from the dense model."""
    return Comparison(model_of(row) or "the dense model", (ModelComparison(f"{row.method} {row.target}", row.shifts),))


def shift_from_json(raw: Mapping[str, Any]) -> PredictionShift:
    """The inverse of ``to_jsonable``."""
    shift: PredictionShift = from_jsonable(PredictionShift, raw)
    return shift


def comparison_from_json(raw: Mapping[str, Any]) -> Comparison:
    """The inverse of ``to_jsonable`` for a whole comparison."""
    models = (
        ModelComparison(
            model["model"],
            {text: shift_from_json(shift) for text, shift in model["shifts"].items()},
            tuple(Flips(**flip) for flip in model["flips"]),
        )
        for model in raw["models"]
    )
    return Comparison(raw["dense"], tuple(models), raw["settings"])


def read_comparison(paths: Sequence[Path]) -> Comparison | None:
    """What `autoprune compare` saved in this file or directory; None if these are results of another kind, or if such
    results lie in the directory too: then the file has to be named.

    Raises: DataError for a comparison that can't be read, or one among other results.
    """
    files = [path / f"{STEM}.json" if _alone_in(path) else path for path in paths]
    found = [file for file in files if file.is_file() and _holds_one(file)]
    if not found:
        return None
    if len(files) > 1:
        raise DataError(
            f"{found[0]}: a comparison is shown by itself; give it alone, and other results in another call"
        )
    try:
        return comparison_from_json(json.loads(found[0].read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{found[0]}: this comparison can't be read ({error}); make it again") from error


def _alone_in(place: Path) -> bool:
    """Whether a comparison, and no table of another kind, lies in the directory."""
    others = ("results.json", "log_*.json", "zeroshot_*.json")
    return (place / f"{STEM}.json").is_file() and not any(any(place.glob(name)) for name in others)


def _holds_one(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"dense", "models", "settings"} <= set(content)
