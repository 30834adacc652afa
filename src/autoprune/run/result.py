"""What ``autoprune.prune`` gives back."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from autoprune.errors import ModelError
from autoprune.recipe.recipe import Recipe
from autoprune.report.layers import layer_table
from autoprune.results.comparison import Comparison, comparison_of
from autoprune.results.shown import perplexity_table, screen
from autoprune.results.table import to_html
from autoprune.results.types import EvaluationRow, PruningSummary

OPENED = "open it: AutoModelForCausalLM.from_pretrained(result.directory)"

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor
    from transformers import PreTrainedModel

    class CausalLM(PreTrainedModel):
        """A transformers model that generates text, as type checkers see it: transformers' own types hide that."""

        def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
            """As ``transformers.GenerationMixin`` has it."""


@dataclass(frozen=True, repr=False)
class PruneResult:
    """What a run did: in figures, in ``model`` or in ``directory``, where the checkpoint was written.

    ``warnings`` are what a user should know though it is no error, such as the target as it was read.
    """

    recipe: Recipe
    row: EvaluationRow
    in_memory: nn.Module | None = None
    directory: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def model(self) -> CausalLM:
        """The pruned model, a ``transformers`` model like any other.

        Raises: ModelError with the line that opens it if it was written, or run block by block, and is not in memory.
        """
        if self.in_memory is None:
            raise ModelError(f"the model is not in memory: {self._where}{'; ' + OPENED if self.directory else ''}")
        return cast("CausalLM", self.in_memory)

    @property
    def summary(self) -> PruningSummary | None:
        """Per-layer outcomes; None when only the dense model was evaluated."""
        return self.row.pruning

    @property
    def perplexity(self) -> dict[str, float]:
        """Perplexity by evaluation text."""
        return {result.source: result.perplexity for result in self.row.perplexity}

    @property
    def comparison(self) -> Comparison | None:
        """How far predictions are from the dense model's; None unless ``compare`` asked for it."""
        return comparison_of(self.row) if self.row.shifts else None

    def to_pandas(self) -> DataFrame:
        """What became of every layer, one line each; no line where nothing was pruned."""
        return (self.summary or PruningSummary(())).to_pandas()

    @property
    def _where(self) -> str:
        """Where the model is, and how it is opened."""
        held = f".model, a {type(self.in_memory).__name__} in memory" if self.in_memory is not None else ""
        if self.directory is not None:
            return f"written to {self.directory}{'; and ' + held if held else ''}"
        if held:
            return held
        if self.recipe.output.delete:
            return "it was deleted after it was measured, as asked for"
        return "it was run block by block, and nothing was written; give save_model="

    @property
    def _head(self) -> str:
        return f"{self.row.method} at {self.row.target}, {self.row.sparsity:.2%} of the layers' weights are zero"

    def __repr__(self) -> str:
        lines = [f"model: {self._where}", *([OPENED] if self.directory else [])]
        if self.row.perplexity:
            lines.append("perplexity: " + ", ".join(f"{name} {value:.4g}" for name, value in self.perplexity.items()))
        for other in self.row.beside:
            figures = ", ".join(f"{text.source} {text.perplexity:.4g}" for text in other.perplexity)
            lines.append(f"{other.method}: {figures}")
        if self.row.zeroshot:
            lines.append(repr(self.row.zeroshot))
        if self.summary and self.summary.layers:
            lines.append(f"pruned: {self.summary!r}")
        return screen(f"PruneResult: {self._head}", [*lines, *(f"warning: {text}" for text in self.warnings)])

    def _repr_html_(self) -> str:
        opened = f"<br><code>{OPENED}</code>" if self.directory else ""
        parts = [f"<p><b>{html.escape(self._head)}</b><br>model: {html.escape(self._where)}{opened}</p>"]
        if self.row.perplexity:
            parts.append(to_html(perplexity_table(self.row.perplexity)))
        if self.summary and self.summary.layers:
            parts.append(to_html(layer_table(self.summary)))
        return "".join([*parts, *(f"<p>{html.escape(text)}</p>" for text in self.warnings)])
