"""A tiny model with its tokenizer and texts, and short ways to run autoprune on it as a user would."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from autoprune.cli.main import classic

VOCABULARY = 128
CONTEXT = 64
SEQLEN = 16
BLOCKS = 2
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LAYERS = BLOCKS * 7


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the words w0, w1, …"""
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 3))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=CONTEXT
    )


def tiny_model(model_type: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A random model, the same at every call; norms and biases are no ones and zeros, so that losing one shows."""
    config = AutoConfig.for_model(model_type, **{**LLAMA, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)  # type: ignore[no-any-return]


def save_tiny(directory: Path, model: PreTrainedModel | None = None, **options: Any) -> Path:
    """The model and its tokenizer as a Hugging Face directory."""
    (model or tiny_model()).save_pretrained(directory, **options)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def write_words(path: Path, count: int, seed: int) -> Path:
    """A text of ``count`` words that the tokenizer knows."""
    rng = random.Random(seed)
    path.write_text(" ".join(f"w{rng.randrange(VOCABULARY - 3)}" for _ in range(count)), encoding="utf-8")
    return path


class Texts(NamedTuple):
    """A calibration text and a text for perplexity."""

    calibration: Path
    heldout: Path


class Answer(NamedTuple):
    """What a command said."""

    status: int
    out: str
    err: str


def flags(model: Path | str, texts: Texts | None = None, **options: Any) -> list[str]:
    """Command-line flags: Wanda at 50 % on the tiny texts, and nothing of the dense model, with ``options`` changed;
    None drops one, True is a bare flag.
    """
    chosen: dict[str, Any] = {
        "model": model,
        "prune_method": "wanda",
        "sparsity_ratio": 0.5,
        "nsamples": 8,
        "seqlen": SEQLEN,
        "no_dense": True,
    }
    if texts is not None:
        chosen |= {"calibration_data": texts.calibration, "eval_data": texts.heldout}
    chosen |= options
    listed: list[str] = []
    for name, value in chosen.items():
        if value is not None and value is not False:
            listed += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return listed


def tensors(directory: Path) -> dict[str, Tensor]:
    """All stored tensors of a checkpoint."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Same dtype, shape and bytes: tells 0.0 from -0.0."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    )


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory tree by its relative name."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def is_pruned_layer(name: str) -> bool:
    """Whether a stored tensor of a llama-like model is the weight of a linear map in a block."""
    return name.endswith("_proj.weight")


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Rewrites model.safetensors after ``change`` has changed its tensors in place."""
    held = load_file(directory / "model.safetensors")
    change(held)
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def metadata(path: Path) -> dict[str, str]:
    """The free-form metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@torch.no_grad()
def plain_perplexity(directory: Path, text: Path, seqlen: int = SEQLEN) -> float:
    """The papers' protocol, written down once more without any of the project's code."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    ids = torch.tensor(tiny_tokenizer()(text.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    losses = []
    for start in range(0, len(ids) - seqlen + 1, seqlen):
        window = ids[start : start + seqlen]
        logits = model(input_ids=window[None], use_cache=False).logits[0].float()
        losses.append(functional.cross_entropy(logits[:-1], window[1:]).double())
    return math.exp(float(torch.stack(losses).mean()))


@contextmanager
def transformers_log() -> Iterator[list[str]]:
    """Everything that transformers logs at level warning or above meanwhile."""
    import logging

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = hf_logging.get_logger("transformers")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def run_classic(capsys: Any, arguments: list[str]) -> Answer:
    """``main.py`` with these flags."""
    capsys.readouterr()
    status = classic(arguments)
    return Answer(status, *capsys.readouterr())
