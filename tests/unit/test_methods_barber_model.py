"""LLM-Barber on whole tiny models against a hand-written version: one sub-block and one sample at a time.

The package finds sub-blocks from outside and takes the gradients of many samples in one backward pass; the oracle
knows LLaMA's and OPT's code and asks autograd once per sample. They must meet in every gradient, pattern and loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from oracles import barber as oracle
from oracles.gradients import per_sample, rms
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from autoprune.core.problem import LayerProblem, LayerSolution
from autoprune.core.sparsity import SemiStructured, Unstructured
from autoprune.core.statistics import GradientEnergy
from autoprune.model.door import prune_with
from autoprune.model.layers import Layer
from autoprune.model.observe import InputSample
from autoprune.model.parts import weight_gradients
from autoprune.model.stream import Place
from autoprune.model.walk import prepare_inputs
from autoprune.results.outcome import SubBlockOutcome
from autoprune.steps.barber import Barber
from autoprune.steps.magnitude import Magnitude
from autoprune.storage.store import MemoryStore

BLOCKS, TOKENS, SAMPLES, BATCH = 2, 10, 5, 2  # the last batch is ragged


def _llama() -> nn.Module:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=BLOCKS, max_position_embeddings=32, **shape))


def _opt() -> nn.Module:
    shape = {"hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 4, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(vocab_size=32, num_hidden_layers=BLOCKS, max_position_embeddings=32, **shape))


def _random(build: Callable[[], nn.Module]) -> nn.Module:
    """Weights large enough that attention and nonlinearities are far from their linear range; norms and biases not at
    1 and 0.
    """
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.4)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@dataclass(frozen=True)
class Recording(Barber):
    """LLM-Barber that remembers the gradient statistics it was given, by layer."""

    seen: dict[str, Tensor] = field(default_factory=dict)

    def solve(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        """As Barber."""
        self.seen.update({p.name: p.statistic.rms.clone() for p in problems})
        return super().solve(problems)


def _ids() -> Tensor:
    return torch.randint(3, 32, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))


def _rebuild(
    model: nn.Module, method: Barber, target: Unstructured | SemiStructured
) -> tuple[Tensor, list[SubBlockOutcome]]:
    """Magnitude, then LLM-Barber, through the package's loop. Returns also block 0's input."""
    store = MemoryStore(model)
    _, stream = prepare_inputs(store, _ids(), BATCH, Place())
    hidden = torch.cat([stream[i] for i in range(len(stream))]).clone()
    results = prune_with(store, (Magnitude(), method), target, _ids(), batch=BATCH)
    return hidden, [outcome for result in results for outcome in result.sub_blocks]


@pytest.fixture(
    params=[(_llama, oracle.llama_halves, "model.layers"), (_opt, oracle.opt_halves, "model.decoder.layers")],
    ids=["llama", "opt"],
)
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, oracle.Halves, str]:
    """A random model, its halves by hand, and where its blocks are."""
    build, halves, prefix = request.param
    return _random(build), halves, prefix


@pytest.mark.parametrize(
    "options",
    [
        oracle.Options(0.5, *o)
        for o in (("block", 0.3, "WD"), ("layer", 0.5, "D"), ("output1", 1.0, "WD"), ("input1", 0.4, "WD"))
    ],
    ids=str,
)
def test_rebuilding_equals_the_version_by_hand(
    family: tuple[nn.Module, oracle.Halves, str], options: oracle.Options
) -> None:
    dense, halves, prefix = family
    model = copy.deepcopy(dense)
    method = Recording(options.granularity, options.threshold, options.metric)
    hidden, outcomes = _rebuild(model, method, Unstructured(options.ratio))
    wanted = list(oracle.magnitude_then_barber(copy.deepcopy(dense), halves, hidden, BLOCKS, options))
    assert [(o.block, o.name) for o in outcomes] == [(i // 2, half.name) for i, half in enumerate(wanted)]
    weights, originals = dict(model.named_parameters()), dict(dense.named_parameters())
    for outcome, half in zip(outcomes, wanted, strict=True):
        for name, keep in half.keep.items():
            full = f"{prefix}.{outcome.block}.{name}"
            torch.testing.assert_close(
                method.seen[full].double(), half.rms[name], rtol=1e-3, atol=1e-4 * float(half.rms[name].max())
            )
            assert torch.equal(weights[f"{full}.weight"], originals[f"{full}.weight"] * keep), full
        assert outcome.loss_before == pytest.approx(half.loss_before, rel=1e-3)
        assert outcome.loss_after == pytest.approx(half.loss_after, rel=1e-3)
        assert (outcome.exchanged, outcome.inverted) == (half.exchanged, half.inverted)
        assert outcome.exchanged > 0


def test_sub_block_losses_fall(family: tuple[nn.Module, oracle.Halves, str]) -> None:
    """A moderate exchange by weight and gradient brings the sub-blocks nearer to the dense ones than magnitude left
    them.
    """
    _, outcomes = _rebuild(family[0], Barber("layer", 0.3), Unstructured(0.5))
    assert sum(o.loss_after for o in outcomes) < sum(o.loss_before for o in outcomes)


@pytest.mark.parametrize("pattern", [SemiStructured(2, 4), SemiStructured(1, 4)], ids=str)
def test_groups_stay_intact_through_the_loop(
    family: tuple[nn.Module, oracle.Halves, str], pattern: SemiStructured
) -> None:
    model = family[0]
    _, outcomes = _rebuild(model, Barber("output1", 1.0), pattern)
    assert all(o.exchanged > 0 for o in outcomes)
    for block in MemoryStore(model).anatomy.blocks:
        for layer in block.layers:
            assert (layer.matrix != 0).unflatten(1, (-1, pattern.m)).sum(-1).unique().tolist() == [pattern.n]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_rebuilt_in_float32(
    family: tuple[nn.Module, oracle.Halves, str], dtype: torch.dtype
) -> None:
    """Gradients too small for float16 are still seen; the weights come back in the model's dtype, the kept ones bit
    for bit.
    """
    model = family[0].to(dtype)
    originals = {name: p.clone() for name, p in model.named_parameters()}
    method = Recording("layer", 0.3)
    _, outcomes = _rebuild(model, method, Unstructured(0.5))
    assert all(o.exchanged > 0 for o in outcomes)
    assert all(statistic.dtype == torch.float32 for statistic in method.seen.values())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        survivors = parameter != 0
        assert torch.equal(parameter[survivors], originals[name][survivors])
        if name.removesuffix(".weight") in method.seen:
            assert int((~survivors).sum()) == parameter.numel() // 2


def test_bfloat16_gradients_are_near_float32_ones(family: tuple[nn.Module, oracle.Halves, str]) -> None:
    """Not the same, but near; weights and other parameters are in the model's own precision again afterwards, bit for
    bit.
    """
    dense = family[0]
    patterns, methods = [], []
    for word in ("float32", "bfloat16"):
        model = copy.deepcopy(dense)
        methods.append(Recording("layer", 0.3, compute_dtype=word))
        _, outcomes = _rebuild(model, methods[-1], Unstructured(0.5))
        assert all(o.exchanged > 0 and o.loss_after > 0 for o in outcomes)
        layers = [name.removesuffix(".weight") in methods[-1].seen for name, _ in model.named_parameters()]
        for layer, (name, parameter), original in zip(
            layers, model.named_parameters(), dense.parameters(), strict=True
        ):
            kept = parameter != 0 if layer else torch.ones_like(parameter, dtype=torch.bool)
            assert parameter.dtype == torch.float32 and torch.equal(parameter[kept], original[kept]), name
        patterns.append(
            torch.cat([(p != 0).flatten() for layer, p in zip(layers, model.parameters(), strict=True) if layer])
        )
    first = next(iter(methods[0].seen))
    exact, coarse = (method.seen[first] for method in methods)
    assert coarse.dtype == torch.float32 and not torch.equal(exact, coarse)
    torch.testing.assert_close(coarse, exact, rtol=0.1, atol=0.02 * float(exact.max()))
    assert (patterns[0] == patterns[1]).float().mean() > 0.97


def _chain(batch_first: bool) -> tuple[nn.Linear, nn.Linear, Callable[[Tensor], Tensor]]:
    """Two layers and how samples run through them."""
    torch.manual_seed(3)
    first, second = nn.Linear(6, 5), nn.Linear(5, 4)

    def run(x: Tensor) -> Tensor:
        y = x if batch_first else x.flatten(0, 1)  # OPT flattens samples and tokens before its bare layers
        return second(torch.relu(first(y))).view(*x.shape[:-1], 4)

    return first, second, run


@pytest.mark.parametrize("batch_first", [True, False], ids=["samples apart", "samples and tokens flattened"])
def test_one_backward_pass_gives_every_samples_gradient(batch_first: bool) -> None:
    """weight_gradients on two layers in a row, the weights themselves frozen, against autograd once per sample."""
    first, second, run = _chain(batch_first)
    x, aim = torch.randn(4, 3, 6), torch.randn(4, 3, 4)
    singly = per_sample(lambda j: (run(x[j : j + 1]) - aim[j]).square().mean(), [first.weight, second.weight], 4)
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.requires_grad_(False)
    layers = [Layer("first", first), Layer("second", second)]
    energies = {layer.name: GradientEnergy.empty(layer.shape) for layer in layers}
    samples = {layer.name: InputSample.spread(12) for layer in layers}
    with weight_gradients(energies, samples, layers, 4, 3) as backward:
        backward((run(x) - aim).square().flatten(1).mean(1))
    for energy, wanted in zip(energies.values(), rms(singly), strict=True):
        assert energy.samples == 4
        torch.testing.assert_close(energy.rms.double(), wanted, rtol=1e-4, atol=1e-7)
    assert first.weight.grad is None and second.weight.grad is None  # no memory was spent on summed gradients


def test_layers_that_get_rows_of_several_samples() -> None:
    """Experts kept in a list, as some families' own code has them: plain layers, each given some tokens of each
    sample, in any order.
    """
    torch.manual_seed(4)
    first, second = nn.Linear(6, 4), nn.Linear(6, 4)
    x, aim, chosen = torch.randn(4, 3, 6), torch.randn(4, 3, 4), torch.rand(4, 3) < 0.5

    def run(x: Tensor, chosen: Tensor) -> Tensor:
        y = torch.zeros(*x.shape[:-1], 4)
        for layer, here in ((first, chosen), (second, ~chosen)):
            places = here.nonzero().flip(0)
            y = y.index_put(tuple(places.T), layer(x[tuple(places.T)]))
        return y

    singly = per_sample(
        lambda j: (run(x[j : j + 1], chosen[j : j + 1]) - aim[j]).square().mean(), [first.weight, second.weight], 4
    )
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.requires_grad_(False)
    layers = [Layer("0", first), Layer("1", second)]
    energies = {layer.name: GradientEnergy.empty(layer.shape) for layer in layers}
    with weight_gradients(
        energies, {layer.name: InputSample.spread(12) for layer in layers}, layers, 4, 3
    ) as backward:
        backward((run(x, chosen) - aim).square().flatten(1).mean(1))
    for energy, wanted in zip(energies.values(), rms(singly), strict=True):
        torch.testing.assert_close((energy.squares / 4).sqrt().double(), wanted, rtol=1e-4, atol=1e-7)
