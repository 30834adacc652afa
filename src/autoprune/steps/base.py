"""What a step is, and all that it may see and do: the face of a block under work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import Target
from autoprune.core.statistics import CrossGram, InputGram, InputNorm
from autoprune.errors import RecipeError
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.steps.price import Price, Shape, layer_price

if TYPE_CHECKING:
    from autoprune.steps.survey import Survey, SurveyResult

InputStatistic = type[InputNorm] | type[InputGram] | type[CrossGram]


@dataclass(frozen=True)
class Needs:
    """What a step asks of the walk."""

    statistic: InputStatistic | None = None  # of what enters the layers; None: looks at no data by layer
    also: tuple[InputStatistic, ...] = ()  # further kinds; the cross Gram takes the dense stream too
    gradients: bool = False  # of the sub-blocks' losses
    data: bool = False  # calibration samples, though no statistic of a layer
    own_stream: bool = False  # begins a pass of its own: hidden states that only it and later steps have pruned
    dense_stream: bool = False  # the dense model's hidden states beside the pruned ones
    held_out: float = 0.0  # share of the samples on which results are judged and nothing is fitted
    survey: bool = False  # a walk over the dense model beforehand
    alone: bool = False  # one process has to see all samples

    @property
    def statistics(self) -> tuple[InputStatistic, ...]:
        """All kinds."""
        return (*((self.statistic,) if self.statistic else ()), *self.also)

    @property
    def samples(self) -> bool:
        """Whether calibration data is read at all."""
        return bool(self.statistics) or self.gradients or self.data or self.dense_stream or self.survey


@runtime_checkable
class Layer(Protocol):
    """A linear map of the block."""

    @property
    def name(self) -> str:
        """Its name inside the block."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        ...

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """Its present weight."""
        ...


@runtime_checkable
class Group(Protocol):
    """Layers that are fed by one and the same tensor."""

    @property
    def layers(self) -> Sequence[Layer]:
        """In the order in which they run."""
        ...

    @property
    def statistics(self) -> Mapping[InputStatistic, InputNorm | InputGram | CrossGram]:
        """What was seen of that tensor, by kind."""
        ...


@runtime_checkable
class Part(Protocol):
    """A sub-block under work: the attention half or the MLP half of a block."""

    @property
    def name(self) -> str:
        """The block's child, such as ``self_attn``."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """Those to prune."""
        ...

    def solve(self, solve: Solve, *, together: bool) -> None:
        """Observes weight gradients, solves its layers one by one or all together, and assigns.

        Layers that no gradient reaches, and experts that saw few tokens, stay as they are.
        """
        ...


Solve = Callable[[Sequence[LayerProblem]], Sequence[LayerSolution]]


@runtime_checkable
class Block(Protocol):
    """One decoder block while it is worked on: all that a step may see and do."""

    @property
    def index(self) -> int:
        """Its place in the model, from 0."""
        ...

    @property
    def name(self) -> str:
        """Its name in the model."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers to prune."""
        ...

    @property
    def module(self) -> nn.Module:
        """The block itself; its layers' weights are changed by ``assign`` alone."""
        ...

    def observe(self, statistic: InputStatistic | None) -> Sequence[Group]:
        """The input groups with what was seen of their inputs, observed once for all steps of a pass."""
        ...

    def solve(self, groups: Sequence[Group], solve: Solve, statistic: InputStatistic | None) -> None:
        """Solves group by group and assigns; of several processes each solves a part."""
        ...

    def parts(self, compute_dtype: str) -> Iterator[Part]:
        """The sub-blocks in their order, each behind the pruned ones before it.

        ``compute_dtype``: what their passes run in, ``auto``, ``float32``, ``tf32`` or ``bfloat16``.
        """
        ...

    def retarget(self, layer: Layer, weight: Float[Tensor, "out in"]) -> None:
        """From now on this is what the layer's output is measured against, and its present value."""
        ...

    def training(self, compute_dtype: str, *, by_token: bool) -> AbstractContextManager[Training]:
        """The layers to prune, norms and biases, ready to be trained in ``auto``, ``float32`` or ``bfloat16``.

        ``by_token``: the mean of every token's relative error, not that of all together. It changes nothing itself.
        """
        ...

    def assign_values(self, values: Mapping[str, Tensor]) -> None:
        """Gives the block what was trained; patterns stay."""
        ...

    def note(self, notes: Mapping[str, Any], layers: Sequence[Layer] | None = None) -> None:
        """Adds JSON values to what the record says of the block's layers, all of them or some."""
        ...

    def decisions(self) -> Decisions:
        """What was decided of its layers so far, to be adopted later."""
        ...

    def adopt(self, decisions: Decisions, layers: Sequence[Layer]) -> None:
        """Makes earlier decisions the present ones, for some of its layers."""
        ...

    def trial(self) -> AbstractContextManager[Trial]:
        """Whatever is assigned inside is rolled back at the end unless ``keep`` was called."""
        ...

    def loss(self, *, held_out: bool) -> float:
        """``||y - y_d||^2 / ||y_d||^2``: its output against the dense block's, on one part of the samples."""
        ...


@dataclass(frozen=True)
class Decisions:
    """By layer: its solution, and what the record says of it."""

    solutions: Mapping[str, LayerSolution]
    outcomes: Mapping[str, LayerOutcome]


@runtime_checkable
class Training(Protocol):
    """A block whose values are trained, or the whole model: by parameter name, in the parameters' own layout."""

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Those at the beginning."""
        ...

    @property
    def patterns(self) -> Mapping[str, Tensor]:
        """True where a value is kept; for those that have a pattern."""
        ...

    @property
    def fitted(self) -> range:
        """Numbers of the micro-batches to train on."""
        ...

    def gradients(self, values: Mapping[str, Tensor], i: int) -> Mapping[str, Tensor]:
        """Those of a block's relative output error, or of the model's divergence, on one micro-batch."""
        ...

    def judge(self, values: Mapping[str, Tensor]) -> float:
        """The same loss on the held-out samples."""
        ...

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tells whoever watches."""
        ...


@runtime_checkable
class Trial(Protocol):
    """An attempt that may be undone."""

    def keep(self) -> None:
        """Makes what was assigned final."""
        ...


@dataclass(frozen=True)
class Step:
    """One thing that is done to every block: a frozen dataclass, whose fields are flags, TOML keys and the record.

    Subclasses state ``name`` (in recipes), ``title`` (in tables and pages) and ``needs`` as class variables.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[Needs] = Needs()

    def apply(self, block: Block) -> None:
        """Does it to one block. Raises: NumericsError if numbers go bad."""
        raise NotImplementedError

    def survey(self, survey: Survey) -> SurveyResult:
        """What is to be known of the whole dense model beforehand, if ``needs.survey``."""
        raise NotImplementedError

    def remarks(self, layers: Sequence[LayerOutcome], sub_blocks: Sequence[SubBlockOutcome]) -> list[str]:
        """What a user should know when all blocks are done, by what became of them: none, or one a sentence."""
        return []

    def check(self, target: Target | None) -> None:
        """Raises: RecipeError if the options do not fit the target."""

    def check_machine(self, device: str, processes: int) -> None:
        """Raises: RecipeError if blocks can't be worked on there: on a device like ``cuda``, by so many processes."""
        if processes > 1 and self.needs.alone:
            raise RecipeError(
                f"the step {self.name} has to see all samples in one process; start it without torchrun, or leave the"
                " step out"
            )

    def check_layers(self, layers: Mapping[str, Sequence[str]]) -> None:
        """Raises: RecipeError if the options do not fit the model: by block, the names of the layers to prune."""

    def beside(self, options: Mapping[str, Any]) -> Step:
        """Itself, told the options of all steps by name; for one that takes others along."""
        return self

    def price(self, shape: Shape) -> Price:
        """Memory and arithmetic, for ``--memory`` and ``inspect``."""
        return layer_price(shape, gram=self.needs.statistic not in (None, InputNorm))


@dataclass(frozen=True)
class LayerStep(Step):
    """A step that treats each layer by what enters it: only ``solve`` is left to write."""

    def apply(self, block: Block) -> None:
        """Observe, solve, assign."""
        block.solve(block.observe(self.needs.statistic), self.solve, self.needs.statistic)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """One solution for each problem, in order; the layers of an input group come together."""
        raise NotImplementedError
