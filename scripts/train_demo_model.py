#!/usr/bin/env python3
"""Build the small demo language model that AutoPrune ships.

The text is the King James Bible, as the program ``bible`` (Debian package
``bible-kjv``) prints it, or a file in the same form (``--text``): one verse a
line, ``Gen1:1 In the beginning ...``.  From it this script makes the training,
calibration and held-out texts, a byte-level BPE tokenizer and a small Llama
model with grouped-query attention, and writes everything to one folder.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from demo_texts import read_source, split_chapters, split_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

REPOSITORY = Path(__file__).resolve().parent.parent
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]

README = Path(__file__).with_name("demo_model_card.md")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults make the model that is shipped."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--text",
        type=Path,
        help=(
            "text in the form `Gen1:1 In the beginning ...`, one verse a line (without it: the output of the program"
            " `bible`)"
        ),
    )
    add("--output", type=Path, default=REPOSITORY / "src" / "autoprune" / "demo", help="folder for the results")
    add("--vocab", type=int, default=1536, help="size of the vocabulary")
    add("--hidden", type=int, default=128, help="width of the model")
    add("--intermediate", type=int, default=384, help="inner width of the MLP")
    add("--blocks", type=int, default=5, help="number of decoder blocks")
    add("--heads", type=int, default=4, help="attention heads")
    add("--kv-heads", type=int, default=2, help="key and value heads")
    add("--context", type=int, default=256, help="tokens in a window")
    add("--batch", type=int, default=4, help="windows in a step")
    add("--steps", type=int, default=12000, help="optimizer steps")
    add("--lr", type=float, default=3e-3, help="peak learning rate of the matrices")
    add("--gain-lr", type=float, default=1e-2, help="peak learning rate of the norm gains")
    add("--weight-decay", type=float, default=0.2, help="weight decay of the matrices")
    add(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="float32",
        help="how the weights are stored; training is in float32",
    )
    add("--threads", type=int, default=1, help="CPU threads")
    add("--seed", type=int, default=0, help="seed of the initialisation and the data order")
    arguments = parser.parse_args(argv)
    arguments.command = describe_command(parser, arguments)
    return arguments


def describe_command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Return the command line with the options that differ from the defaults."""
    words = ["python", "scripts/train_demo_model.py"]
    for name, value in vars(arguments).items():
        if name != "output" and value != parser.get_default(name):
            shown = value.name if isinstance(value, Path) else str(value)
            words += ["--" + name.replace("_", "-"), shown]
    return shlex.join(words)


def train_tokenizer(train: list[str], vocab: int, output: Path) -> Tokenizer:
    """Train the byte-level BPE tokenizer on the training text and save it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        train,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=SPECIAL_TOKENS,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if tokenizer.get_vocab_size() != vocab:
        sys.exit(f"error: the text gives only {tokenizer.get_vocab_size()} tokens, not {vocab}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(output / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


def build_model(a: argparse.Namespace) -> LlamaForCausalLM:
    """Return the untrained model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=a.vocab,
            hidden_size=a.hidden,
            intermediate_size=a.intermediate,
            num_hidden_layers=a.blocks,
            num_attention_heads=a.heads,
            num_key_value_heads=a.kv_heads,
            max_position_embeddings=a.context,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
            initializer_range=0.02,
            rms_norm_eps=1e-5,
        )
    )


def make_optimizer(model: LlamaForCausalLM, a: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; the norm gains have a learning rate of their own and no decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "peak": a.lr, "weight_decay": a.weight_decay},
        {"params": gains, "peak": a.gain_lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.98), fused=True)


def batches(ids: torch.Tensor, a: argparse.Namespace):
    """Yield batches of ``context + 1`` tokens, epoch after epoch, without end.

    Each epoch cuts the text at another offset; half of the windows start with ``<s>``.
    """
    generator = torch.Generator().manual_seed(a.seed)
    while True:
        offset = int(torch.randint(a.context, (1,), generator=generator))
        windows = ids[offset:].unfold(0, a.context + 1, a.context)
        for chosen in torch.randperm(len(windows), generator=generator).split(a.batch):
            if len(chosen) == a.batch:
                batch = windows[chosen].clone()
                batch[torch.rand(a.batch, generator=generator) < 0.5, 0] = 1
                yield batch


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 2 % of the steps, then a cosine down to 1 %."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def train_model(model: LlamaForCausalLM, ids: torch.Tensor, a: argparse.Namespace) -> float:
    """Train the model and return the mean loss of the last 5 % of the steps."""
    optimizer, stream = make_optimizer(model, a), batches(ids, a)
    model.train()
    losses: list[float] = []
    start = time.monotonic()
    for step in range(a.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, a.steps)
        batch = next(stream)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == a.steps:
            recent, spent = losses[-100:], (time.monotonic() - start) / 60
            print(
                f"step {step + 1}/{a.steps}  loss {sum(recent) / len(recent):.3f}  {spent:.1f} "
                f"min, {spent / (step + 1) * (a.steps - step - 1):.1f} min left",
                flush=True,
            )
    tail = losses[-max(1, a.steps // 20) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor, context: int) -> float:
    """Perplexity over non-overlapping windows of ``context`` tokens."""
    model.eval()
    windows = ids[: len(ids) // context * context].view(-1, context)
    total = 0.0
    for batch in windows.split(16):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (len(windows) * (context - 1)))


def write_readme(a: argparse.Namespace, model: LlamaForCausalLM, **figures: object) -> None:
    """Write the README of the output folder."""
    sizes = {
        name: f"{(a.output / (name + '.txt')).stat().st_size / 1000:.0f} kB" for name in ("calibration", "heldout")
    }
    (a.output / "README.md").write_text(
        README.read_text(encoding="utf-8").format(
            blocks=a.blocks,
            hidden=a.hidden,
            vocab=a.vocab,
            context=a.context,
            dtype=a.dtype,
            parameters=model.num_parameters(),
            command=a.command,
            threads=a.threads,
            plural="s" if a.threads > 1 else "",
            torch=torch.__version__.split("+")[0],
            **sizes,
            **figures,
        ),
        encoding="utf-8",
    )


def main(argv: list[str] | None = None) -> None:
    """Make texts, tokenizer and model, and write them with a README."""
    a = parse_arguments(argv)
    started = time.monotonic()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    texts = split_texts(split_chapters(read_source(a.text)))
    a.output.mkdir(parents=True, exist_ok=True)
    joined = {name: "\n".join(chapters) + "\n" for name, chapters in texts.items()}
    for name in ("calibration", "heldout"):
        (a.output / f"{name}.txt").write_text(joined[name], encoding="utf-8")
    tokenizer = train_tokenizer(texts["train"], a.vocab, a.output)
    ids = {name: torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids) for name, text in joined.items()}
    model = build_model(a)
    print(
        f"{model.num_parameters():,} parameters; tokens: "
        + ", ".join(f"{name} {len(tokens):,}" for name, tokens in ids.items()),
        flush=True,
    )
    loss = train_model(model, ids["train"], a)
    model = model.to(getattr(torch, a.dtype))
    model.save_pretrained(a.output)
    (a.output / "model.safetensors").chmod(0o644)
    held = perplexity(model.float(), ids["heldout"], a.context)
    write_readme(
        a,
        model,
        loss=loss,
        perplexity=held,
        chapters=len(texts["calibration"]),
        held_chapters=len(texts["heldout"]),
        minutes=(time.monotonic() - started) / 60,
    )
    print(f"training loss {loss:.3f}, held-out perplexity {held:.2f}, written to {a.output}", flush=True)


if __name__ == "__main__":
    main()
