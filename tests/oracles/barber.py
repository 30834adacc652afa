"""LLM-Barber on LLaMA and OPT, written out by hand for these two: one block, one sub-block, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oracles.exchange import exchange
from oracles.gradients import per_sample, rms


@dataclass
class Half:
    """A sub-block: its linear maps by name, its output for one sample, and the block's hidden states after it."""

    name: str
    layers: dict[str, nn.Linear]
    output: Callable[[Tensor], Tensor]  # hidden states before the half -> the half's output
    advance: Callable[[Tensor], Tensor]  # ... -> hidden states after it


def _named(prefix: str, module: nn.Module, *names: str) -> dict[str, nn.Linear]:
    return {f"{prefix}.{name}": getattr(module, name) for name in names}


def causal(tokens: int) -> Tensor:
    """Additive attention mask."""
    return torch.full((1, 1, tokens, tokens), torch.finfo(torch.float32).min).triu(1)


def llama_halves(model: nn.Module, index: int, tokens: int) -> list[Half]:
    """LlamaDecoderLayer."""
    block = model.model.layers[index]
    rotary = model.model.rotary_emb(torch.zeros(1, tokens, 1), torch.arange(tokens)[None])

    def attention(h: Tensor) -> Tensor:
        return block.self_attn(block.input_layernorm(h), position_embeddings=rotary, attention_mask=causal(tokens))[0]

    def mlp(h: Tensor) -> Tensor:
        x = block.post_attention_layernorm(h)
        return block.mlp.down_proj(torch.nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x))

    a, m = block.self_attn, block.mlp
    return [
        Half(
            "self_attn",
            _named("self_attn", a, "q_proj", "k_proj", "v_proj", "o_proj"),
            attention,
            lambda h: h + attention(h),
        ),
        Half("mlp", _named("mlp", m, "gate_proj", "up_proj", "down_proj"), mlp, lambda h: h + mlp(h)),
    ]


def opt_halves(model: nn.Module, index: int, tokens: int) -> list[Half]:
    """OPTDecoderLayer (norms before the halves; fc1 and fc2 lie bare in the block)."""
    block = model.model.decoder.layers[index]

    def attention(h: Tensor) -> Tensor:
        return block.self_attn(block.self_attn_layer_norm(h), attention_mask=causal(tokens))[0]

    def mlp(h: Tensor) -> Tensor:
        return block.fc2(torch.relu(block.fc1(block.final_layer_norm(h))))

    a = block.self_attn
    return [
        Half(
            "self_attn",
            _named("self_attn", a, "k_proj", "v_proj", "q_proj", "out_proj"),
            attention,
            lambda h: h + attention(h),
        ),
        Half("fc1+fc2", {"fc1": block.fc1, "fc2": block.fc2}, mlp, lambda h: h + mlp(h)),
    ]


Halves = Callable[[nn.Module, int, int], list[Half]]  # model, block, tokens


@dataclass
class Options:
    """Of magnitude and of LLM-Barber."""

    ratio: float
    granularity: str
    threshold: float
    metric: str


@dataclass
class Rebuilt:
    """What became of one half."""

    name: str
    rms: dict[str, Tensor]
    keep: dict[str, Tensor]
    loss_before: float
    loss_after: float
    exchanged: int
    inverted: int


@torch.no_grad()
def assign(half: Half, weights: dict[str, Tensor]) -> None:
    """Gives the linear maps of the half these weights."""
    for name, layer in half.layers.items():
        layer.weight.copy_(weights[name])


def rebuild_half(half: Half, pruned: dict[str, Tensor], samples: list[Tensor], options: Options) -> Rebuilt:
    """Takes the dense weights from the model and leaves the rebuilt ones there; W* is the dense weight."""
    dense = {n: layer.weight.detach().clone() for n, layer in half.layers.items()}
    with torch.no_grad():
        assign(half, pruned)
        sparse = [half.output(h) for h in samples]
        assign(half, dense)
    parameters = [layer.weight.requires_grad_() for layer in half.layers.values()]
    gradients = per_sample(lambda j: (half.output(samples[j]) - sparse[j]).square().mean(), parameters, len(samples))
    for parameter in parameters:
        parameter.requires_grad_(False)
    energy = dict(zip(half.layers, rms(gradients), strict=True))
    one = {
        "WD": lambda n: dense[n].abs() * energy[n].float(),
        "W": lambda n: dense[n].abs(),
        "D": lambda n: energy[n].float(),
    }[options.metric]
    scores, patterns = [one(n).tolist() for n in half.layers], [(pruned[n] != 0).tolist() for n in half.layers]
    result = exchange(scores, patterns, options.granularity, options.threshold)
    keep = {n: torch.tensor(k) for n, k in zip(half.layers, result.keep, strict=True)}
    before = _loss(half, samples, sparse)
    with torch.no_grad():
        wanted = [half.output(h) for h in samples]
    assign(half, {n: dense[n] * keep[n] for n in half.layers})
    return Rebuilt(half.name, energy, keep, before, _loss(half, samples, wanted), len(result.grown), result.inverted)


@torch.no_grad()
def _loss(half: Half, samples: list[Tensor], wanted: list[Tensor]) -> float:
    return sum(float((half.output(h) - w).square().mean()) for h, w in zip(samples, wanted, strict=True)) / len(
        samples
    )


def magnitude_then_barber(
    model: nn.Module, halves: Halves, hidden: Tensor, blocks: int, options: Options
) -> Iterator[Rebuilt]:
    """Prunes the model in place from its block inputs ``hidden`` on; yields every half in order."""
    samples = list(hidden.split(1))
    for index in range(blocks):
        for half in halves(model, index, hidden.shape[1]):
            pruned = {
                n: _smallest_gone(layer.weight, int(options.ratio * layer.weight.numel()))
                for n, layer in half.layers.items()
            }
            yield rebuild_half(half, pruned, samples, options)
            with torch.no_grad():
                samples = [half.advance(h) for h in samples]


def _smallest_gone(weight: Tensor, count: int) -> Tensor:
    result = weight.detach().flatten().clone()
    result[result.abs().argsort(stable=True)[:count]] = 0
    return result.view_as(weight)
