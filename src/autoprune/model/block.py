"""One block while it is worked on: all that a step may see and do."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.core.order_statistics import count_zeros, zeroed
from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import Target
from autoprune.core.statistics import Statistic
from autoprune.errors import NumericsError
from autoprune.events import Emit, Notice, Progress
from autoprune.model.anatomy import BlockAnatomy
from autoprune.model.gradients import PartWork, work_by_parts
from autoprune.model.layers import Layer, hold_originals
from autoprune.model.observe import InputGroup, Kind
from autoprune.model.observing import observe_block
from autoprune.model.sharing import solved
from autoprune.model.stream import Stream
from autoprune.model.training import BlockTraining
from autoprune.model.trial import Trial
from autoprune.model.walk import Inputs
from autoprune.results.outcome import LayerOutcome, SubBlockOutcome
from autoprune.steps.base import Decisions, Group, Solve
from autoprune.steps.base import Layer as LayerFace


@dataclass
class Block:
    """A block with its weights at hand, the streams that flow through it, and what was decided about it so far."""

    anatomy: BlockAnatomy
    layers: tuple[Layer, ...]  # those to prune
    targets: Mapping[str, Target]  # by the layers' full names
    inputs: Inputs
    emit: Emit
    blocks: int  # how many the model has
    stored_as: Mapping[str, torch.dtype] = field(default_factory=dict)  # by parameter: what new weights are rounded to
    in_place: bool = False  # whether weights are overwritten, because the block is running while they change
    stream: Stream | None = None  # as pruned so far; None where the present pass looks at no data
    dense_stream: Stream | None = None  # of the dense model, where a step asks for it
    kinds: tuple[Kind, ...] = ()  # of statistics that the present pass wants
    advances: bool = False  # whether the present step may leave the block's output in the stream
    advanced: bool = False  # whether one has
    solutions: dict[str, LayerSolution] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)  # new values of parameters that are no layer's weight
    outcomes: dict[str, LayerOutcome] = field(default_factory=dict)
    sub_blocks: list[SubBlockOutcome] = field(default_factory=list)
    dense: dict[str, Tensor] = field(init=False)
    dense_output: Stream | None = field(init=False, default=None)
    _groups: list[InputGroup] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.originals = hold_originals(self.layers, self.in_place)  # by parameter name
        self.dense = {layer.name: layer.of(self.originals[layer.parameter_name]) for layer in self.layers}
        self.dense_inputs = self.inputs
        self._retargeted: set[str] = set()
        if self.dense_stream is not None:
            self.dense_output = self.inputs.new_stream()
            self._run_into(self.dense_stream, self.dense_output, "dense")

    @property
    def index(self) -> int:
        """Its place in the model, from 0."""
        return self.anatomy.index

    @property
    def name(self) -> str:
        """Its name in the model."""
        return self.anatomy.name

    @property
    def module(self) -> nn.Module:
        """The block itself."""
        return self.anatomy.module

    def begin_pass(self, inputs: Inputs, stream: Stream | None, kinds: tuple[Kind, ...]) -> None:
        """From now on steps see these hidden states, and share what is observed of them."""
        self.inputs, self.stream, self.kinds = inputs, stream, kinds
        self._groups, self.advanced = None, False

    def batches(self, phase: str, which: Sequence[int] | None = None) -> Iterator[int]:
        """Numbers of micro-batches, all of them or ``which``; each one is reported when it is done."""
        chosen = self.inputs.batches if which is None else which
        for done, i in enumerate(chosen, start=1):
            yield i
            self.emit(Progress(self.index, self.blocks, phase, done, len(chosen)))

    def run(self, i: int, hidden: Float[Tensor, "samples tokens ..."]) -> Float[Tensor, "samples tokens ..."]:
        """The block's output for hidden states of micro-batch ``i``, with its present weights."""
        return self.inputs.calls.of(i, self.index)(self.module, hidden)

    def run_dense(self, i: int, hidden: Float[Tensor, "samples tokens ..."]) -> Float[Tensor, "samples tokens ..."]:
        """The same for hidden states of the dense stream, with what its earlier blocks left for this one."""
        return self.dense_inputs.calls.of(i, self.index)(self.module, hidden)

    @torch.no_grad()
    def advance(self, dtype: torch.dtype | None = None) -> None:
        """The block's outputs with its present weights become the next block's inputs.

        ``dtype`` is what it runs in, if not the stream's, which stays as it is: the next block is to find the
        precision that it would have found.
        """
        assert self.stream is not None
        self._run_into(self.stream, self.stream, "advance", dtype)
        self.advanced = True

    @torch.no_grad()
    def _run_into(self, source: Stream, to: Stream, phase: str, dtype: torch.dtype | None = None) -> None:
        for i in self.batches(phase):
            given = source[i]
            result = self.run(i, given.to(dtype or source.dtype))
            to[i] = result if dtype in (None, given.dtype) else result.to(given.dtype)

    @torch.no_grad()
    def loss(self, *, held_out: bool) -> float:
        """``||y - y_d||^2 / ||y_d||^2``: the block's output against the dense block's on the dense stream.

        On the samples that nothing is fitted to, or on those that are looked at.
        """
        assert self.stream is not None and self.dense_output is not None, "the step's needs must name a dense stream"
        lost = whole = 0.0
        for i in self.inputs.judged if held_out else self.inputs.fitted:
            wanted = self.dense_output[i].float()
            lost += float((self.run(i, self.stream[i]).float() - wanted).square().sum(dtype=torch.float64))
            whole += float(wanted.square().sum(dtype=torch.float64))
        return lost / whole if whole else 0.0

    def observe(self, statistic: Kind | None) -> Sequence[InputGroup]:
        """The input groups and what was seen of their inputs: once for all steps of a pass."""
        if self.stream is None:
            return [InputGroup([layer], None) for layer in self.layers]
        if self._groups is None:
            self._groups = observe_block(self)
        here = {layer.name for layer in self.layers}
        groups = [replace(g, layers=[la for la in g.layers if la.name in here]) for g in self._groups]
        return [group for group in groups if group.layers]

    def forget(self, wanted: Collection[Kind]) -> None:
        """Lets go of the statistics that no later step of the pass wants; samples for layer errors stay."""
        for group in self._groups or ():
            for kind in group.statistics.keys() - set(wanted):
                del group.statistics[kind]

    def solve(self, groups: Sequence[Group], solve: Solve, statistic: Kind | None) -> None:
        """Group by group: problems, solutions, weights; of several ranks each solves a part of the groups."""
        observed = [group for group in groups if isinstance(group, InputGroup)]

        def problems(i: int) -> list[LayerProblem]:
            seen = observed[i].statistics.get(statistic) if statistic else None
            return [self.problem(layer, seen) for layer in observed[i].layers]

        units = [group.layers for group in observed]
        for group, solutions in zip(observed, solved(self.inputs.ranks, units, problems, solve), strict=True):
            self.assign_group(group, solutions)

    def problem(self, layer: Layer, statistic: Statistic | None = None) -> LayerProblem:
        """The layer's problem as it stands now."""
        before, name = self.solutions.get(layer.name), self.anatomy.full_name(layer)
        known = before is not None or layer.name in self._retargeted
        keep = before.keep & (layer.matrix != 0) if before else None  # a dense weight may be zero by itself
        dense = self.dense[layer.name] if known else None
        return LayerProblem(name, layer.matrix, self.targets.get(name), statistic, dense, keep)

    def assign_group(self, group: InputGroup, solutions: Sequence[LayerSolution]) -> None:
        """Assigns the solutions of an input group's layers and notes what became of them."""
        for layer, solution in zip(group.layers, solutions, strict=True):
            self.assign(layer, solution)
            dense = layer.of(self.originals[layer.parameter_name])
            error = group.sample.relative_error(dense, layer.matrix) if group.sample else None
            self.record(layer, replace(solution, notes=group.notes | solution.notes), error)
            if solution.notes.get("attempts", 1) > 1:
                how = f"damping {solution.notes['damping']:g}, {solution.notes['precision']}"
                how += f", attempt {solution.notes['attempts']}"
                self.emit(Notice(f"{solution.name}: the Hessian could only be factorised with {how}"))

    def assign(self, layer: Layer, solution: LayerSolution) -> None:
        """Puts a solution into the model, rounded as it will be stored.

        Raises: NumericsError naming the layer if a new weight is not finite.
        """
        value = self.dense[layer.name]
        if solution.weight is None and layer.name in self._retargeted:
            solution = replace(solution, weight=value)
        if solution.weight is not None:
            dtype = value.dtype
            rounded = solution.weight.to(self.stored_as.get(layer.parameter_name, dtype))
            solution, value = replace(solution, weight=rounded), rounded.to(dtype)  # held like this until written
            if not bool(torch.isfinite(value).all()):
                raise NumericsError(
                    f"{solution.name}: the method produced weights that are not finite; try --dtype float32 or a"
                    " larger --damping"
                )
        layer.assign(zeroed(value, solution.keep), in_place=self.in_place)
        self.solutions[layer.name] = solution

    def assign_other(self, name: str, value: Tensor) -> None:
        """Gives a parameter of the block that is no layer's weight, such as a norm's, a new value."""
        parameter = self.module.get_parameter(name)
        rounded = value.to(self.stored_as.get(name, parameter.dtype))
        parameter.data = rounded.to(parameter.dtype)
        self.others[name] = rounded

    def retarget(self, layer: LayerFace, weight: Float[Tensor, "out in"]) -> None:
        """From now on this takes the dense weight's place: later steps begin with it and are measured against it."""
        dtype = self.dense[layer.name].dtype
        own = next(own for own in self.layers if own.name == layer.name)
        value = weight.to(self.stored_as.get(own.parameter_name, dtype)).to(dtype)
        self.dense[layer.name] = value
        self._retargeted.add(layer.name)
        own.assign(value, in_place=self.in_place)

    def record(self, layer: Layer, solution: LayerSolution, error: float | None) -> None:
        """Notes what became of the layer; zeros are counted in the weights, not in the pattern."""
        zeros, name = count_zeros(layer.matrix), self.anatomy.full_name(layer)
        before = self.outcomes[layer.name].notes if layer.name in self.outcomes else {}
        notes = {**before, **solution.notes}
        self.outcomes[layer.name] = LayerOutcome(self.index, name, layer.count, zeros, error, notes)

    def parts(self, compute_dtype: str) -> Iterator[PartWork]:
        """The sub-blocks in their order, each behind the pruned ones before it."""
        yield from work_by_parts(self, compute_dtype)

    @contextlib.contextmanager
    def training(self, compute_dtype: str, *, by_token: bool) -> Iterator[BlockTraining]:
        """The layers to prune, norms and biases, ready to be trained; nothing has changed when it ends."""
        training = BlockTraining(self, compute_dtype, by_token)
        try:
            yield training
        finally:
            training.restore()

    def assign_values(self, values: Mapping[str, Tensor]) -> None:
        """Gives the block what was trained, by parameter name; patterns stay."""
        fused = {layer.parameter_name for layer in self.layers}
        for layer in self.layers:
            if layer.parameter_name in values:
                before = self.problem(layer)
                keep = torch.ones_like(layer.matrix, dtype=torch.bool) if before.keep is None else before.keep
                weight = layer.of(values[layer.parameter_name])
                solution = LayerSolution(before.name, keep, weight)
                self.assign(layer, solution)
                self.record(layer, solution, self._error_of(layer))
        for name, value in values.items():
            if name not in fused:
                self.assign_other(name, value)

    def _error_of(self, layer: Layer) -> float | None:
        """The layer's relative output error now, on the tokens that were sampled when the pass observed; else None."""
        groups = [g for g in self._groups or () if any(la.name == layer.name for la in g.layers)]
        sample = groups[0].sample if groups else None
        return sample.relative_error(layer.of(self.originals[layer.parameter_name]), layer.matrix) if sample else None

    def note(self, notes: Mapping[str, Any], layers: Sequence[LayerFace] | None = None) -> None:
        """Adds to what the record says of the block's layers, all of them or some."""
        for layer in self.layers if layers is None else layers:
            outcome = self.outcomes[layer.name]
            self.outcomes[layer.name] = replace(outcome, notes={**outcome.notes, **notes})

    def decisions(self) -> Decisions:
        """What was decided of its layers so far, to be adopted later."""
        return Decisions(dict(self.solutions), dict(self.outcomes))

    def adopt(self, decisions: Decisions, layers: Sequence[LayerFace]) -> None:
        """Makes earlier decisions the present ones, for some of its layers."""
        names = {layer.name for layer in layers}
        for layer in self.layers:
            if layer.name in names:
                self.assign(layer, decisions.solutions[layer.name])
                self.outcomes[layer.name] = decisions.outcomes[layer.name]

    @contextlib.contextmanager
    def only(self, layers: Sequence[LayerFace]) -> Iterator[None]:
        """While it lasts, steps see these layers alone."""
        names, whole = {layer.name for layer in layers}, self.layers
        self.layers = tuple(layer for layer in whole if layer.name in names)
        try:
            yield
        finally:
            self.layers = whole

    @contextlib.contextmanager
    def trial(self) -> Iterator[Trial]:
        """Whatever is assigned inside is rolled back at the end, unless ``keep`` was called."""
        trial, advances = Trial(self), self.advances
        self.advances = False
        try:
            yield trial
        finally:
            self.advances = advances
            if not trial.kept:
                trial.roll_back()
