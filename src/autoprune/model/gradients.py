"""A block's sub-blocks one after the other: weight gradients of each, its solutions, and its output with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.statistics import GradientEnergy
from autoprune.errors import ModelError, NumericsError
from autoprune.model.layers import Expert, Layer
from autoprune.model.observe import FEW_TOKENS, InputSample
from autoprune.model.parts import SubBlock, SubBlockRunner, find_sub_blocks, weight_gradients
from autoprune.model.precision import COMPUTE_DTYPES, computing_in, narrowed, tensor_cores
from autoprune.model.sharing import merge_gradients, solved
from autoprune.model.stream import Stream
from autoprune.results.outcome import SubBlockOutcome
from autoprune.steps.base import Solve

if TYPE_CHECKING:
    from autoprune.model.block import Block


def work_by_parts(block: Block, compute_dtype: str) -> Iterator[PartWork]:
    """The sub-blocks in the order in which they run; behind the last one the block's output becomes the stream.

    Each is run once more when the step is done with it, so that the next one sees it as it is then.
    """
    assert block.stream is not None and block.inputs.probe is not None
    subs = find_sub_blocks(block.anatomy, block.layers, block.inputs.probe.run)
    _require_rebuilt(block, subs)
    runner = SubBlockRunner(block.anatomy, subs)
    dtype = COMPUTE_DTYPES[compute_dtype]
    outputs: list[Stream] = []
    with tensor_cores(compute_dtype):
        for index, sub in enumerate(subs):
            outputs.append(block.inputs.new_stream())
            part = PartWork(block, runner, index, outputs, dtype)
            if sub.layers:
                yield part
            with narrowed(block.module, block.stream.dtype, dtype) as own:
                part.finish(own, last=index == len(subs) - 1)
    block.advanced = block.advances


def _require_rebuilt(block: Block, subs: Sequence[SubBlock]) -> None:
    """Raises: ModelError naming a layer that is in no sub-block, so that nothing would rebuild it."""
    found = {layer.name for sub in subs for layer in sub.layers}
    if missed := [block.anatomy.full_name(layer) for layer in block.layers if layer.name not in found]:
        raise ModelError(
            f"{missed[0]} ({len(missed)} such layers in this block) belongs to no attention or MLP sub-block that"
            f" autoprune can see, so it can't be rebuilt by sub-blocks; leave it dense with --ignore {missed[0]!r}, or"
            " leave that step out"
        )


@dataclass
class PartWork:
    """One sub-block while it is worked on, behind the earlier ones as they were left."""

    block: Block
    runner: SubBlockRunner
    index: int
    outputs: list[Stream]  # of this sub-block and those before it
    dtype: torch.dtype  # what its passes run in
    solutions: list[LayerSolution] = field(default_factory=list)
    units: list[int] = field(default_factory=list)  # places in ``solutions`` where those of a unit begin
    loss_before: float | None = None  # mean squared error of its output against the dense weights

    @property
    def sub_block(self) -> SubBlock:
        """Its layers, and what of the block it is."""
        return self.runner.sub_blocks[self.index]

    @property
    def name(self) -> str:
        """The block's child, such as ``self_attn``."""
        return self.sub_block.name

    @property
    def layers(self) -> Sequence[Layer]:
        """Those to prune."""
        return self.sub_block.layers

    def solve(self, solve: Solve, *, together: bool) -> None:
        """Observes weight gradients, solves the layers one by one or all together, and assigns.

        Some stay as they were: experts that saw too few tokens, and layers whose output only decides something
        (DeepSeek-V3.2's indexer): no gradient reaches them, so their scores would be zero beside those of the others.
        """
        block = self.block
        energies, samples, self.loss_before = self._observe()
        starved = {la.name for la in self.layers if isinstance(la, Expert) and samples[la.name].seen < FEW_TOKENS}
        reached = {la.name for la in self.layers if bool(energies[la.name].squares.any())}
        skipped = starved | ({la.name for la in self.layers} - reached if reached else set())
        layers = [layer for layer in self.layers if layer.name not in skipped]
        units = [[layer] for layer in layers] if not together else [layers] if layers else []

        def problems(i: int) -> list[LayerProblem]:
            return [block.problem(layer, energies[layer.name]) for layer in units[i]]

        for unit, found in zip(units, solved(block.inputs.ranks, units, problems, solve), strict=True):
            self.units.append(len(self.solutions))
            self.solutions += found
            for layer, answer in zip(unit, found, strict=True):
                block.assign(layer, answer)
                dense = layer.of(block.originals[layer.parameter_name])
                block.record(layer, answer, samples[layer.name].relative_error(dense, layer.matrix))
        for name in skipped:
            reason = {"tokens": samples[name].seen} if name in starved else {"gradient": "none"}
            notes = block.outcomes[name].notes | {"rebuilt": False} | reason
            block.outcomes[name] = replace(block.outcomes[name], notes=notes)

    def _observe(self) -> tuple[dict[str, GradientEnergy], dict[str, InputSample], float]:
        """Pruned forward, dense forward, backward, for every sample; keeps the dense outputs.

        Returns the layers' energies, some of their inputs, and the mean loss.
        """
        block, inputs = self.block, self.block.inputs
        energies = {la.name: GradientEnergy.empty(la.shape, la.matrix.device) for la in self.layers}
        tokens, before = inputs.fitted_samples * inputs.tokens, inputs.before * inputs.tokens
        samples = {la.name: InputSample.spread(tokens, 0 if isinstance(la, Expert) else before) for la in self.layers}
        parameters = {layer.parameter_name: layer.parameter for layer in self.layers}
        pruned = {name: parameter.data for name, parameter in parameters.items()}
        total = torch.zeros((), dtype=torch.float64, device=inputs.place.device)
        unused = {la.parameter_name for other in self.runner.sub_blocks for la in other.layers}  # by their stubs
        with computing_in(block.module, self.dtype, leave={*parameters, *unused}):
            dense = {name: block.originals[name].to(self.dtype) for name in parameters}
            try:
                for i in block.batches(f"gradients {self.name}", inputs.fitted):
                    losses = self._differences(i, parameters, pruned, dense, energies, samples)
                    total += losses.double().sum()
            finally:  # a model in memory that is interrupted here keeps its own weights
                _put(parameters, pruned)
        merge_gradients(inputs.ranks, self.layers, energies, samples, total)
        for layer in self.layers:
            name = block.anatomy.full_name(layer)
            if not samples[layer.name].seen and not isinstance(layer, Expert):
                raise NumericsError(f"{name} saw no input while its sub-block ran; leave it out with --ignore")
            energies[layer.name].samples = inputs.fitted_samples  # samples that sent an expert nothing count as well
            if not bool(torch.isfinite(energies[layer.name].squares).all()):
                raise NumericsError(f"{name}: its gradients are not finite; check the model and the calibration data")
        return energies, samples, float(total) / inputs.fitted_samples

    def _differences(
        self,
        i: int,
        parameters: dict[str, nn.Parameter],
        pruned: dict[str, Tensor],
        dense: dict[str, Tensor],
        energies: dict[str, GradientEnergy],
        samples: dict[str, InputSample],
    ) -> Tensor:
        """Every sample's loss in one micro-batch, its gradients being added to the energies."""
        block, stream = self.block, self.block.stream
        assert stream is not None
        call, hidden = block.inputs.calls.of(i, block.index), stream[i].to(self.dtype)
        earlier = [output[i].to(self.dtype) for output in self.outputs[: self.index]]
        # For this pass only: a second copy is large.
        _put(parameters, {name: data.to(self.dtype) for name, data in pruned.items()})
        with torch.no_grad():
            sparse_output, _ = self.runner.run(self.index, call, hidden, earlier)
        _put(parameters, dense)
        with weight_gradients(energies, samples, self.layers, *hidden.shape[:2]) as backward:
            dense_output, _ = self.runner.run(self.index, call, hidden, earlier)
            losses = (dense_output.float() - sparse_output.float()).square().flatten(1).mean(1)
            backward(losses)
        # Only to be compared with the rebuilt one, which is as coarse.
        self.outputs[self.index][i] = dense_output.to(stream.dtype)
        return losses.detach()

    @torch.no_grad()
    def finish(self, dtype: torch.dtype, *, last: bool) -> None:
        """Runs the sub-block as it is now; after the last one the block's output replaces the stream."""
        block, stream = self.block, self.block.stream
        assert stream is not None
        total = torch.zeros((), dtype=torch.float64, device=block.inputs.place.device)
        for i in block.batches("rebuilt"):
            given = stream[i]
            hidden = given.to(dtype)
            earlier = [output[i].to(hidden.dtype) for output in self.outputs[: self.index]]
            output, result = self.runner.run(self.index, block.inputs.calls.of(i, block.index), hidden, earlier)
            if self.loss_before is not None and i in block.inputs.fitted:
                dense = self.outputs[self.index][i].float()
                total += (dense - output.float()).square().flatten(1).mean(1).double().sum()
            self.outputs[self.index][i] = output
            if last and block.advances:
                stream[i] = result if given.dtype == dtype else result.to(given.dtype)
        if self.loss_before is None or not self.solutions:
            block.inputs.ranks.all_reduce(total)
            return
        block.inputs.ranks.all_reduce(total)
        notes = [solution.notes for solution in self.solutions]
        firsts = [notes[begin] for begin in self.units]  # a unit's counts stand in the notes of each of its layers
        compared, inverted = (sum(note.get(key, 0) for note in firsts) for key in ("compared", "inverted"))
        exchanged = sum(note.get("grown", 0) for note in notes)
        after = float(total) / block.inputs.fitted_samples
        block.sub_blocks.append(
            SubBlockOutcome(block.index, self.name, self.loss_before, after, compared, inverted, exchanged)
        )


def _put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.data = values[name]
