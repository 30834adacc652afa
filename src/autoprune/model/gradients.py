"""LLM-Barber's work on one block: gradients of every sub-block, exchange, and the rebuilt sub-block's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from autoprune.core.problem import LayerSolution, Method
from autoprune.core.statistics import GradientEnergy
from autoprune.errors import ModelError, NumericsError
from autoprune.model.layers import Expert
from autoprune.model.observe import FEW_TOKENS, InputSample
from autoprune.model.parts import SubBlock, SubBlockRunner, find_sub_blocks, weight_gradients
from autoprune.model.precision import COMPUTE_DTYPES, compute_word, computing_in, narrowed
from autoprune.model.sharing import merge_gradients, solved
from autoprune.model.stream import Stream
from autoprune.model.work import Work
from autoprune.results.outcome import SubBlockOutcome


def prune_by_gradients(work: Work, method: Method, stream: Stream) -> None:
    """Sub-block by sub-block, each behind the rebuilt ones before it; advances the stream on the way."""
    probe = work.inputs.probe
    assert probe is not None
    subs = find_sub_blocks(work.block, work.layers, probe.run)
    _require_rebuilt(work, subs)
    runner = SubBlockRunner(work.block, subs)
    dtype = COMPUTE_DTYPES[compute_word(method)]
    outputs: list[Stream] = []
    for index, sub in enumerate(subs):
        outputs.append(work.inputs.new_stream())
        before, solutions = 0.0, list[LayerSolution]()
        if sub.layers:
            energies, samples, before = _observe_gradients(work, runner, index, stream, outputs, dtype)
            solutions = _rebuild(work, method, sub, energies, samples)
        last = index == len(subs) - 1
        with narrowed(work.block.module, stream.dtype, dtype) as own:
            after = _run_rebuilt(work, runner, index, stream, outputs, own, last=last)
        if solutions:
            work.sub_blocks.append(_outcome(work, sub, solutions, method, before, after))


def _require_rebuilt(work: Work, subs: Sequence[SubBlock]) -> None:
    """Raises: ModelError naming a layer that is in no sub-block, so that nothing would rebuild it."""
    found = {layer.name for sub in subs for layer in sub.layers}
    if missed := [work.block.full_name(layer) for layer in work.layers if layer.name not in found]:
        raise ModelError(
            f"{missed[0]} ({len(missed)} such layers in this block) belongs to no attention or MLP sub-block that"
            f" autoprune can see, so LLM-Barber can't rebuild it; leave it dense with --ignore {missed[0]!r}, or prune"
            " without --prune_barber"
        )


def _rebuild(
    work: Work, method: Method, sub: SubBlock, energies: dict[str, GradientEnergy], samples: dict[str, InputSample]
) -> list[LayerSolution]:
    """Solves and assigns the layers of a sub-block; some stay as the pass before left them.

    These are experts that saw too few tokens, and layers whose output only decides something (DeepSeek-V3.2's
    indexer): no gradient reaches them, so their scores would be zero beside those of the others.
    """
    starved = {
        layer.name for layer in sub.layers if isinstance(layer, Expert) and samples[layer.name].seen < FEW_TOKENS
    }
    reached = {layer.name for layer in sub.layers if bool(energies[layer.name].squares.any())}
    skipped = starved | ({layer.name for layer in sub.layers} - reached if reached else set())
    layers = [layer for layer in sub.layers if layer.name not in skipped]
    units = [[layer] for layer in layers] if not _together(method) else [layers] if layers else []
    solutions = list[LayerSolution]()

    def solve(index: int) -> list[LayerSolution]:
        return method.solve([work.problem(layer, energies[layer.name]) for layer in units[index]])

    for unit, found in zip(units, solved(work.inputs.ranks, units, solve), strict=True):
        solutions += found
        for layer, solution in zip(unit, found, strict=True):
            work.assign(layer, solution)
            work.record(layer, solution, samples[layer.name].relative_error(work.dense[layer.name], layer.matrix))
    for name in skipped:
        reason = {"tokens": samples[name].seen} if name in starved else {"gradient": "none"}
        notes = work.outcomes[name].notes | {"rebuilt": False} | reason
        work.outcomes[name] = replace(work.outcomes[name], notes=notes)
    return solutions


def _observe_gradients(
    work: Work, runner: SubBlockRunner, index: int, stream: Stream, outputs: list[Stream], dtype: torch.dtype
) -> tuple[dict[str, GradientEnergy], dict[str, InputSample], float]:
    """Pruned forward, dense forward, backward, for every sample; keeps the dense outputs. Returns also the mean
    loss.
    """
    inputs, sub = work.inputs, runner.sub_blocks[index]
    energies = {layer.name: GradientEnergy.empty(layer.shape, layer.matrix.device) for layer in sub.layers}
    earlier_tokens = {
        layer.name: 0 if isinstance(layer, Expert) else inputs.before * inputs.tokens for layer in sub.layers
    }
    samples = {
        name: InputSample.spread(inputs.all_samples * inputs.tokens, tokens) for name, tokens in earlier_tokens.items()
    }
    parameters = {layer.parameter_name: layer.parameter for layer in sub.layers}
    pruned = {name: parameter.data for name, parameter in parameters.items()}
    total = torch.zeros((), dtype=torch.float64, device=inputs.place.device)
    unused = {
        layer.parameter_name for other in runner.sub_blocks for layer in other.layers
    }  # here, by the stubs of the others
    with computing_in(work.block.module, dtype, leave={*parameters, *unused}):
        dense = {name: work.originals[name].to(dtype) for name in parameters}

        def differ(i: int) -> Tensor:
            call, hidden = inputs.calls.of(i, work.block.index), stream[i].to(dtype)
            earlier = [output[i].to(dtype) for output in outputs[:index]]
            _put(
                parameters, {name: data.to(dtype) for name, data in pruned.items()}
            )  # for this pass only: a second copy is large
            with torch.no_grad():
                sparse_output, _ = runner.run(index, call, hidden, earlier)
            _put(parameters, dense)
            with weight_gradients(energies, samples, sub.layers, *hidden.shape[:2]) as backward:
                dense_output, _ = runner.run(index, call, hidden, earlier)
                losses = (dense_output.float() - sparse_output.float()).square().flatten(1).mean(1)
                backward(losses)
            outputs[index][i] = dense_output.to(
                stream.dtype
            )  # only to be compared with the rebuilt one, which is as coarse
            return losses.detach()

        try:
            for i in work.batches(f"gradients {sub.name}"):
                total += differ(i).double().sum()
        finally:  # a model in memory that is interrupted here keeps its own weights
            _put(parameters, pruned)
    merge_gradients(inputs.ranks, sub.layers, energies, samples, total)
    for layer in sub.layers:
        if not samples[layer.name].seen and not isinstance(layer, Expert):
            raise NumericsError(
                f"{work.block.full_name(layer)} saw no input while its sub-block ran; leave it out with --ignore"
            )
        energies[layer.name].samples = inputs.all_samples  # samples that sent an expert nothing count as well
        if not bool(torch.isfinite(energies[layer.name].squares).all()):
            raise NumericsError(
                f"{work.block.full_name(layer)}: its gradients are not finite; check the model and the calibration"
                " data"
            )
    return energies, samples, float(total) / inputs.all_samples


def _put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.data = values[name]


@torch.no_grad()
def _run_rebuilt(
    work: Work,
    runner: SubBlockRunner,
    index: int,
    stream: Stream,
    outputs: list[Stream],
    dtype: torch.dtype,
    *,
    last: bool,
) -> float:
    """Runs the rebuilt sub-block; after the last one the block's output replaces the stream. Returns the mean loss."""
    total = torch.zeros((), dtype=torch.float64, device=work.inputs.place.device)
    for i in work.batches("rebuilt"):
        given = stream[i]
        hidden = given.to(dtype)
        earlier = [output[i].to(hidden.dtype) for output in outputs[:index]]
        output, result = runner.run(index, work.inputs.calls.of(i, work.block.index), hidden, earlier)
        if runner.sub_blocks[index].layers:
            total += (outputs[index][i].float() - output.float()).square().flatten(1).mean(1).double().sum()
        outputs[index][i] = output
        if last:
            stream[i] = result if given.dtype == dtype else result.to(given.dtype)
    work.inputs.ranks.sum_(total)
    return float(total) / work.inputs.all_samples


def _outcome(
    work: Work, sub: SubBlock, solutions: Sequence[LayerSolution], method: Method, before: float, after: float
) -> SubBlockOutcome:
    together = _together(method)
    notes = [solution.notes for solution in solutions]
    compared = notes[0]["compared"] if together else sum(n["compared"] for n in notes)
    inverted = notes[0]["inverted"] if together else sum(n["inverted"] for n in notes)
    return SubBlockOutcome(
        work.block.index, sub.name, before, after, compared, inverted, sum(n["grown"] for n in notes)
    )


def _together(method: Method) -> bool:
    """Whether a method compares all layers of a sub-block with each other, so that one rank solves all of them."""
    return getattr(method, "prune_granularity", "block") == "block"
