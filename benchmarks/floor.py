"""The work that a method cannot avoid, and nothing else: what `benchmarks/run.py` sets the program's phases beside.

Each function here does one kind of work for all blocks of a model, on the tensors and in the batches that the program
uses, with plain torch calls. Nothing of it is shared with the program, except the model itself and how its blocks are
called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from autoprune.model.calls import BlockCall
from autoprune.model.stream import Place, Stream
from autoprune.model.walk import Inputs, prepare_inputs
from autoprune.run.layout import TOKENS_PER_PASS
from autoprune.storage.store import MemoryStore

COLUMN_BLOCK = 128


@dataclass(frozen=True)
class Shape:
    """A LLaMA-shaped model and its calibration samples."""

    width: int = 1024
    ffn: int = 2816
    blocks: int = 2
    heads: int = 16
    samples: int = 16
    tokens: int = 512
    vocabulary: int = 2048
    dtype: torch.dtype = torch.float32

    @property
    def batch(self) -> int:
        """Windows per forward pass, as the program chooses them."""
        return max(1, TOKENS_PER_PASS // self.tokens)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Input groups of one block as (rows of all their layers, input features)."""
        return [
            (3 * self.width, self.width),
            (self.width, self.width),
            (2 * self.ffn, self.width),
            (self.width, self.ffn),
        ]

    def config(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.ffn,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=max(self.tokens, 512),
            architectures=["LlamaForCausalLM"],
        )


@dataclass
class Subject:
    """A random model in memory, its calibration samples, and the weights that it had at first."""

    shape: Shape
    store: MemoryStore
    inputs: Inputs
    stream: Stream

    @classmethod
    def make(cls, shape: Shape, device: str = "cpu") -> Subject:
        """Weights of standard deviation 0.02, some features louder than others; the same at every call."""
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape.config()).to(device, shape.dtype).eval().requires_grad_(False)
        ids = torch.randint(
            shape.vocabulary, (shape.samples, shape.tokens), generator=torch.Generator().manual_seed(1)
        )
        store = MemoryStore(model)
        inputs, stream = prepare_inputs(store, ids, shape.batch, Place("cpu", store.device))
        return cls(shape, store, inputs, stream)

    def __post_init__(self) -> None:
        self._weights = {name: parameter.data for name, parameter in self.store.model.named_parameters()}

    def restore(self) -> None:
        """The dense weights again: pruning gives layers new tensors and leaves the old ones alone."""
        for name, parameter in self.store.model.named_parameters():
            parameter.data = self._weights[name]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the model."""
        return [block.module for block in self.store.anatomy.blocks]

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """The hidden states before block 0, batch by batch."""
        for i in range(len(self.stream)):
            yield i, self.stream[i]

    def call(self, batch: int, block: int) -> BlockCall:
        """How a block is called on a batch."""
        return self.inputs.calls.of(batch, block)


@torch.no_grad()
def forward(subject: Subject) -> None:
    """One forward pass of all samples through all blocks."""
    for i, hidden in subject.batches():
        for index, block in enumerate(subject.blocks):
            hidden = subject.call(i, index)(block, hidden)


def copy_weights(subject: Subject) -> list[Tensor]:
    """One read and one write of all weights in the blocks, into memory of their own: pruned weights do not replace
    dense ones.
    """
    return [
        parameter.data.clone() for block in subject.blocks for parameter in block.parameters() if parameter.dim() == 2
    ]


def gram_products(subject: Subject) -> Callable[[], None]:
    """``X^T X`` for every input group of every block, batch by batch."""
    shape = subject.shape
    device = subject.store.device
    inputs = {
        features: torch.randn(shape.batch * shape.tokens, features, device=device) for _, features in shape.groups
    }

    def work() -> None:
        for _ in range(shape.blocks):
            for _, features in shape.groups:
                gram = torch.zeros(features, features, device=device)
                for _ in range(shape.samples // shape.batch):
                    gram.addmm_(inputs[features].T, inputs[features])

    return work


def factorisations(subject: Subject) -> Callable[[], None]:
    """Cholesky, inverse and Cholesky of the inverse for every input group of every block."""
    shape = subject.shape
    grams = {features: _gram(features, subject.store.device) for _, features in shape.groups}

    def work() -> None:
        for _ in range(shape.blocks):
            for _, features in shape.groups:
                torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(grams[features])), upper=True)

    return work


def sweep_products(subject: Subject) -> Callable[[], None]:
    """The matrix products of SparseGPT's sweep: every column block's errors times its rows of the factor."""
    shape = subject.shape
    device = subject.store.device
    factors = {features: torch.randn(features, features, device=device).triu() for _, features in shape.groups}

    def work() -> None:
        for _ in range(shape.blocks):
            for rows, features in shape.groups:
                weight, errors = (
                    torch.zeros(rows, features, device=device),
                    torch.ones(rows, COLUMN_BLOCK, device=device),
                )
                for start in range(0, features, COLUMN_BLOCK):
                    stop = min(start + COLUMN_BLOCK, features)
                    weight[:, start:].addmm_(
                        errors[:, : stop - start], factors[features][start:stop, start:], alpha=-1
                    )

    return work


def barber(subject: Subject) -> None:
    """For every sub-block: pruned forward, dense forward, backward for the weight gradients, rebuilt forward."""
    for i, hidden in subject.batches():
        for index, block in enumerate(subject.blocks):
            kwargs = subject.call(i, index).kwargs
            _sub_block(block.self_attn, lambda m, x, k=kwargs: m(x, **k)[0], hidden)  # type: ignore[arg-type]
            _sub_block(block.mlp, lambda m, x: m(x), hidden)  # type: ignore[arg-type]


def _sub_block(module: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        pruned = run(module, x)
    weights = [parameter for parameter in module.parameters() if parameter.dim() == 2]
    for weight in weights:
        weight.requires_grad_(True)
    loss = (run(module, x) - pruned * 0.5).square().mean()
    torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    with torch.no_grad():
        run(module, x)


def _gram(features: int, device: torch.device) -> Tensor:
    x = torch.randn(2 * features, features, device=device, generator=torch.Generator(device).manual_seed(0))
    return x.T @ x
