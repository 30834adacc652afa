"""The work on one block: observe → solve → assign, for methods that look at inputs and for those that look at gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autoprune.core.outcome import LayerOutcome, SubBlockOutcome
from autoprune.core.problem import LayerProblem, LayerSolution, Method
from autoprune.core.sparsity import Target
from autoprune.core.statistics import GradientEnergy
from autoprune.errors import NumericsError
from autoprune.model.activations import Calls, Mirror
from autoprune.model.anatomy import Block
from autoprune.model.events import Emit, Notice, Step
from autoprune.model.linear import Expert, Layer, hold_originals
from autoprune.model.observe import FEW_TOKENS, InputGroup, InputObserver, InputSample, check_finite, settle_experts
from autoprune.model.ranks import ALONE, Ranks
from autoprune.model.rebuild import SubBlock, SubBlockRunner, find_sub_blocks, weight_gradients
from autoprune.model.sharing import merge_gradients, merge_groups, observed_as, solved
from autoprune.model.stream import Place, Stream

COMPUTE = torch.float32  # LLM-Barber's forward passes and gradients


@dataclass(frozen=True)
class Inputs:
    """What flows into the blocks: how many samples of how many tokens, where they are kept, how blocks are called.

    Of several ranks, each has a part of the samples.
    """

    samples: int  # on this rank
    tokens: int
    batch: int
    place: Place
    calls: Calls
    mirror: Mirror  # how a block returns its hidden states
    all_samples: int  # on all ranks
    before: int = 0  # samples on the ranks before this one
    ranks: Ranks = ALONE

    @classmethod
    def none(cls, ranks: Ranks = ALONE) -> Inputs:
        """Nothing flows: for methods that look at no data."""
        return cls(0, 0, 1, Place(), Calls(), Mirror(None), 0, ranks=ranks)

    def new_stream(self) -> Stream:
        """An empty stream of hidden states."""
        return Stream(self.samples, self.batch, self.place)


@dataclass
class Work:
    """One block while it is worked on, and what was decided about it so far."""

    block: Block
    layers: tuple[Layer, ...]  # those to prune
    target: Target | None
    inputs: Inputs
    emit: Emit
    blocks: int
    solutions: dict[str, LayerSolution] = field(default_factory=dict)
    outcomes: dict[str, LayerOutcome] = field(default_factory=dict)
    sub_blocks: list[SubBlockOutcome] = field(default_factory=list)
    storage_dtype: torch.dtype | None = None  # what the weights are rounded to before they are used again

    def __post_init__(self) -> None:
        self.originals = hold_originals(self.layers)  # by parameter name: the weights before any pass
        self.dense: dict[str, Tensor] = {layer.name: layer.of(self.originals[layer.parameter_name]) for layer in self.layers}

    def batches(self, phase: str) -> Iterator[int]:
        """Indices of the micro-batches; each one is reported when it is done."""
        total = -(-self.inputs.samples // self.inputs.batch)
        for i in range(total):
            yield i
            self.emit(Step(self.block.index, self.blocks, phase, i + 1, total))

    def problem(self, layer: Layer, statistic: object | None = None) -> LayerProblem:
        """The layer's problem as it stands now."""
        before = self.solutions.get(layer.name)
        return LayerProblem(
            self.block.full_name(layer),
            layer.matrix,
            self.target,
            statistic,  # type: ignore[arg-type]
            self.dense[layer.name] if before else None,
            before.keep if before else None,
        )

    def assign(self, layer: Layer, solution: LayerSolution) -> None:
        """Puts a solution into the model, rounded as it will be stored.

        Raises: NumericsError naming the layer if a new weight is not finite.
        """
        dtype = self.dense[layer.name].dtype
        value = self.dense[layer.name]
        if solution.weight is not None:
            if not bool(torch.isfinite(solution.weight).all()):
                raise NumericsError(f"{solution.name}: the method produced weights that are not finite; try --dtype float32 or a larger --damping")
            value = solution.weight.to(self.storage_dtype or dtype).to(dtype)
        layer.assign(value.masked_fill(~solution.keep, 0.0))
        self.solutions[layer.name] = solution

    def record(self, layer: Layer, solution: LayerSolution, error: float | None) -> None:
        """Notes what became of the layer; zeros are counted in the weights, not in the pattern."""
        zeros = layer.count - int(torch.count_nonzero(layer.matrix))
        notes = {**self.outcomes[layer.name].notes, **solution.notes} if layer.name in self.outcomes else solution.notes
        self.outcomes[layer.name] = LayerOutcome(self.block.index, self.block.full_name(layer), layer.count, zeros, error, notes)


def prune_by_inputs(work: Work, method: Method, stream: Stream | None) -> None:
    """First passes: observe all input groups of the block with its own weights, then solve and assign every group."""
    groups = _observe_inputs(work, method, stream) if stream is not None else [InputGroup([layer], None) for layer in work.layers]

    def solve(index: int) -> list[LayerSolution]:
        return method.solve([work.problem(layer, groups[index].statistic) for layer in groups[index].layers])

    for group, solutions in zip(groups, solved(work.inputs.ranks, [group.layers for group in groups], solve), strict=True):
        for layer, solution in zip(group.layers, solutions, strict=True):
            work.assign(layer, solution)
            error = group.sample.relative_error(work.dense[layer.name], layer.matrix) if group.sample else None
            work.record(layer, replace(solution, notes=group.notes | solution.notes), error)
            if solution.notes.get("attempts", 1) > 1:
                how = f"damping {solution.notes['damping']:g}, {solution.notes['precision']}, attempt {solution.notes['attempts']}"
                work.emit(Notice(f"{solution.name}: the Hessian could only be factorised with {how}"))


@torch.no_grad()
def _observe_inputs(work: Work, method: Method, stream: Stream) -> list[InputGroup]:
    inputs = work.inputs
    kind = observed_as(inputs.ranks, method.statistic)
    observer = InputObserver(work.layers, kind, inputs.all_samples * inputs.tokens, inputs.before * inputs.tokens)
    with observer:
        for i in work.batches("observe"):
            inputs.calls.of(i, work.block.index)(work.block.module, stream[i])
            observer.next_pass()
    groups = settle_experts(merge_groups(inputs.ranks, observer.groups, work.layers, method.statistic), work.layers)
    seen = {layer.name for group in groups for layer in group.layers}
    if unseen := [work.block.full_name(layer) for layer in work.layers if layer.name not in seen]:
        raise NumericsError(
            f"{unseen[0]} saw no input while its block ran, so it can't be pruned by its inputs; leave it dense with --ignore {unseen[0]!r}"
        )
    check_finite(groups, work.block.name)
    return groups


@torch.no_grad()
def advance(work: Work, stream: Stream) -> None:
    """The block's outputs with its present weights become the next block's inputs."""
    for i in work.batches("advance"):
        stream[i] = work.inputs.calls.of(i, work.block.index)(work.block.module, stream[i])


def prune_by_gradients(work: Work, method: Method, stream: Stream) -> None:
    """LLM-Barber: sub-block by sub-block, each behind the rebuilt ones before it; advances the stream on the way."""
    call = work.inputs.calls.of(0, work.block.index)
    subs = find_sub_blocks(work.block, work.layers, call, stream[0])
    runner = SubBlockRunner(work.block, subs)
    outputs: list[Stream] = []
    for index, sub in enumerate(subs):
        outputs.append(work.inputs.new_stream())
        before, solutions = 0.0, list[LayerSolution]()
        if sub.layers:
            energies, samples, before = _observe_gradients(work, runner, index, sub, stream, outputs)
            solutions = _rebuild(work, method, sub, energies, samples)
        after = _run_rebuilt(work, runner, index, stream, outputs, last=index == len(subs) - 1, compare=bool(sub.layers))
        if solutions:
            work.sub_blocks.append(_outcome(work, sub, solutions, method, before, after))


def _rebuild(work: Work, method: Method, sub: SubBlock, energies: dict[str, GradientEnergy], samples: dict[str, InputSample]) -> list[LayerSolution]:
    """Solves and assigns the layers of a sub-block; experts that saw too few tokens stay as the pass before left them."""
    starved = {layer.name for layer in sub.layers if isinstance(layer, Expert) and samples[layer.name].seen < FEW_TOKENS}
    layers = [layer for layer in sub.layers if layer.name not in starved]
    units = [[layer] for layer in layers] if not _together(method) else [layers] if layers else []
    solutions = list[LayerSolution]()

    def solve(index: int) -> list[LayerSolution]:
        return method.solve([work.problem(layer, energies[layer.name]) for layer in units[index]])

    for unit, found in zip(units, solved(work.inputs.ranks, units, solve), strict=True):
        solutions += found
        for layer, solution in zip(unit, found, strict=True):
            work.assign(layer, solution)
            work.record(layer, solution, samples[layer.name].relative_error(work.dense[layer.name], layer.matrix))
    for name in starved:
        notes = work.outcomes[name].notes | {"rebuilt": False, "tokens": samples[name].seen}
        work.outcomes[name] = replace(work.outcomes[name], notes=notes)
    return solutions


def _observe_gradients(
    work: Work, runner: SubBlockRunner, index: int, sub: SubBlock, stream: Stream, outputs: list[Stream]
) -> tuple[dict[str, GradientEnergy], dict[str, InputSample], float]:
    """Pruned forward, dense forward, backward, for every sample; keeps the dense outputs. Returns also the mean loss."""
    energies = {layer.name: GradientEnergy.empty(layer.shape, layer.matrix.device) for layer in sub.layers}
    inputs = work.inputs
    before = {layer.name: 0 if isinstance(layer, Expert) else inputs.before * inputs.tokens for layer in sub.layers}
    samples = {name: InputSample.spread(inputs.all_samples * inputs.tokens, tokens) for name, tokens in before.items()}
    parameters = {layer.parameter_name: layer.parameter for layer in sub.layers}
    pruned = {name: parameter.data for name, parameter in parameters.items()}
    total = torch.zeros((), dtype=torch.float64, device=work.inputs.place.device)
    with _precision(work.block, leave=parameters):
        sparse = {name: data.to(COMPUTE) for name, data in pruned.items()}
        dense = {name: work.originals[name].to(COMPUTE) for name in parameters}
        for i in work.batches(f"gradients {sub.name}"):
            call, hidden = work.inputs.calls.of(i, work.block.index), stream[i].to(COMPUTE)
            earlier = [output[i].to(COMPUTE) for output in outputs[:index]]
            _put(parameters, sparse)
            with torch.no_grad():
                sparse_output, _ = runner.run(index, call, hidden, earlier)
            _put(parameters, dense)
            with weight_gradients(energies, samples, sub.layers, hidden.shape[0]) as backward:
                dense_output, _ = runner.run(index, call, hidden, earlier)
                losses = (dense_output - sparse_output).square().flatten(1).mean(1)
                backward(losses)
            total += losses.detach().double().sum()
            outputs[index][i] = dense_output
    _put(parameters, pruned)
    merge_gradients(inputs.ranks, sub.layers, energies, samples, total)
    for layer in sub.layers:
        if not samples[layer.name].seen and not isinstance(layer, Expert):
            raise NumericsError(f"{work.block.full_name(layer)} saw no input while its sub-block ran; leave it out with --ignore")
        energies[layer.name].samples = inputs.all_samples  # samples that sent an expert nothing count as well
        if not bool(torch.isfinite(energies[layer.name].squares).all()):
            raise NumericsError(f"{work.block.full_name(layer)}: its gradients are not finite; check the model and the calibration data")
    return energies, samples, float(total) / inputs.all_samples


def _put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.data = values[name]


@torch.no_grad()
def _run_rebuilt(work: Work, runner: SubBlockRunner, index: int, stream: Stream, outputs: list[Stream], *, last: bool, compare: bool) -> float:
    """Runs the rebuilt sub-block; after the last one the block's output replaces the stream. Returns the mean loss."""
    total = torch.zeros((), dtype=torch.float64, device=work.inputs.place.device)
    for i in work.batches("rebuilt"):
        hidden = stream[i]
        earlier = [output[i].to(hidden.dtype) for output in outputs[:index]]
        output, result = runner.run(index, work.inputs.calls.of(i, work.block.index), hidden, earlier)
        if compare:
            total += (outputs[index][i] - output).double().square().flatten(1).mean(1).sum()
        outputs[index][i] = output
        if last:
            stream[i] = result
    work.inputs.ranks.sum_(total)
    return float(total) / work.inputs.all_samples


class _precision:
    """While it lasts, the block's parameters, but those that the caller replaces, are in float32 and gather no gradients.

    Afterwards they are what they were, bit for bit.
    """

    def __init__(self, block: Block, leave: Collection[str]) -> None:
        named = list(block.module.named_parameters())
        self._saved = [(p, p.data) for n, p in named if n not in leave and p.is_floating_point() and p.dtype != COMPUTE]
        self._trainable = [p for p in block.module.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        for parameter, data in self._saved:
            parameter.data = data.to(COMPUTE)

    def __exit__(self, *_: object) -> None:
        for parameter, data in self._saved:
            parameter.data = data
        for parameter in self._trainable:
            parameter.requires_grad_(True)


def _outcome(work: Work, sub: SubBlock, solutions: Sequence[LayerSolution], method: Method, before: float, after: float) -> SubBlockOutcome:
    together = _together(method)
    notes = [solution.notes for solution in solutions]
    compared = notes[0]["compared"] if together else sum(n["compared"] for n in notes)
    inverted = notes[0]["inverted"] if together else sum(n["inverted"] for n in notes)
    return SubBlockOutcome(work.block.index, sub.name, before, after, compared, inverted, sum(n["grown"] for n in notes))


def _together(method: Method) -> bool:
    """Whether a method compares all layers of a sub-block with each other, so that one rank has to solve all of them."""
    return getattr(method, "prune_granularity", "block") == "block"
