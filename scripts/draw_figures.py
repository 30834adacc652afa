"""Draws the two figures of README and docs/conventions.md: img/figure1a.png and img/figure1b.png.

Every number in them is computed here, with the project's own selection and exchange, on small random layers.
Run it from anywhere: ``python scripts/draw_figures.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from autoprune.core.exchange import exchange
from autoprune.core.selection import keep_per_layer, keep_per_row

IMAGES = Path(__file__).resolve().parents[1] / "img"
INK, MUTED, LINES, PALE, STROKE = "#1c2127", "#5c6670", "#dde1e6", "#eceef1", "#b9c0c8"
ORANGE, BLUE, GREEN = "#cc7a00", "#0072b2", "#00875f"  # after Okabe and Ito
LAYERS, WIDTH, SAMPLES, TOKENS = 6, 96, 16, 64
SEEDS = range(5)


@dataclass(frozen=True)
class Errors:
    """Relative output error after every layer of the simulated block."""

    own: Tensor  # each layer alone, fed with what the dense layers before it give
    piled: Tensor  # all layers pruned, each for itself
    rebuilt: Tensor  # the same sparsity after LLM-Barber


def main() -> None:
    """Draws both figures."""
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
    }
    with matplotlib.rc_context(
        {**style, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False}
    ):
        save(draw_errors(mean_errors()), "figure1a.png")
        save(draw_rebuilding(), "figure1b.png")


def save(figure: Figure, name: str) -> None:
    """Writes a PNG of 1800 pixels width, the same bytes every time."""
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=200, metadata={"Software": None}, facecolor="white")
    print(IMAGES.name + "/" + name)


def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
    """Outputs of a chain of layers with SiLU and a norm between them."""
    outputs = []
    for weight in weights:
        outputs.append(x @ weight.T)
        hidden = torch.nn.functional.silu(outputs[-1])
        x = hidden / hidden.square().mean(-1, keepdim=True).sqrt()
    return outputs


def simulate(seed: int) -> Errors:
    """Prunes a random chain by Wanda to 50 %, rebuilds it by LLM-Barber, and measures the error after every layer."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dense = [
        normal(WIDTH, WIDTH) * (0.3 * normal(WIDTH, 1) + 0.5 * normal(WIDTH, WIDTH)).exp() / WIDTH**0.5
        for _ in range(LAYERS)
    ]
    x = (normal(SAMPLES, TOKENS, 24) @ normal(24, WIDTH) / 5 + 0.5 * normal(SAMPLES, TOKENS, WIDTH)) * normal(
        WIDTH
    ).exp()
    truth, pruned, keeps = run(dense, x), list[Tensor](), list[Tensor]()
    for i, weight in enumerate(dense):
        seen = x if i == 0 else inputs_of(i, pruned, x)
        keeps.append(keep_per_row(weight.abs() * seen.flatten(0, 1).norm(dim=0), 0.5))
        pruned.append(weight * keeps[-1])
    alone = [run([*dense[:i], pruned[i]], x)[-1] for i in range(LAYERS)]
    exchanged = exchange(barber_scores(dense, pruned, x), keeps, "block", 0.1, None)
    rebuilt = [weight * keep for weight, keep in zip(dense, exchanged.keep, strict=True)]
    return Errors(relative(alone, truth), relative(run(pruned, x), truth), relative(run(rebuilt, x), truth))


def inputs_of(layer: int, weights: list[Tensor], x: Tensor) -> Tensor:
    """What the layer is fed with by the layers before it."""
    hidden = torch.nn.functional.silu(run(weights[:layer], x)[-1])
    return hidden / hidden.square().mean(-1, keepdim=True).sqrt()


def barber_scores(dense: list[Tensor], pruned: list[Tensor], x: Tensor) -> list[Tensor]:
    """``|W| * sqrt(mean_j G_j^2)`` with G_j the gradient of the block's output error on sample j."""
    target = run(pruned, x)[-1]
    weights = [w.clone().requires_grad_() for w in dense]
    energy = [torch.zeros_like(w) for w in dense]
    for sample, goal in zip(x, target, strict=True):
        loss = (run(weights, sample)[-1] - goal).square().mean()
        for total, gradient in zip(energy, torch.autograd.grad(loss, weights), strict=True):
            total += gradient.square() / SAMPLES
    return [w.abs() * e.sqrt() for w, e in zip(dense, energy, strict=True)]


def relative(outputs: list[Tensor], truth: list[Tensor]) -> Tensor:
    """Relative error of every output."""
    return torch.stack([(a - b).norm() / b.norm() for a, b in zip(outputs, truth, strict=True)])


def mean_errors() -> Errors:
    """The simulation's mean over the seeds."""
    runs = [simulate(seed) for seed in SEEDS]
    return Errors(*(torch.stack([getattr(r, name) for r in runs]).mean(0) for name in ("own", "piled", "rebuilt")))


def draw_errors(errors: Errors) -> Figure:
    """Figure 1a: on the left what each way looks at, on the right how the error goes on."""
    figure = Figure(figsize=(9, 4.1))
    left = figure.add_axes((0.01, 0.1, 0.46, 0.86))
    left.set(xlim=(0, 10), ylim=(0, 8))
    left.axis("off")
    left.text(0.2, 7.55, "Layer by layer", fontsize=12, fontweight="bold", color=ORANGE)
    left.text(0.2, 6.98, "each layer is judged by its own output error", color=MUTED)
    draw_chain(left, 5.7, ORANGE)
    for i in range(3):
        left.text(1.95 + 2.7 * i, 4.42, f"error {i + 1}", ha="center", color=ORANGE)
        left.plot(
            [1.05 + 2.7 * i, 1.05 + 2.7 * i, 2.85 + 2.7 * i, 2.85 + 2.7 * i],
            [5.05, 4.9, 4.9, 5.05],
            color=ORANGE,
            linewidth=1.4,
        )
    left.text(0.2, 3.4, "LLM-Barber", fontsize=12, fontweight="bold", color=BLUE)
    left.text(0.2, 2.83, "all layers are judged by the sub-block's output error", color=MUTED)
    draw_chain(left, 1.55, BLUE)
    left.plot([1.05, 1.05, 8.25, 8.25], [0.9, 0.75, 0.75, 0.9], color=BLUE, linewidth=1.4)
    left.text(4.65, 0.2, "one error, its gradient reaches every weight", ha="center", color=BLUE)
    draw_curves(figure.add_axes((0.555, 0.21, 0.3, 0.64)), errors)
    note = (
        f"Simulated: {LAYERS} random layers of width {WIDTH}, Wanda at 50 %, LLM-Barber (block, threshold 0.1), mean"
        f" of {len(SEEDS)} seeds"
    )
    figure.text(0.99, 0.025, note, ha="right", fontsize=7.5, color=MUTED)
    return figure


def draw_chain(axes: Axes, y: float, colour: str) -> None:
    """Three layers in a row with arrows between them."""
    for i in range(4):
        start = 0.2 + 2.7 * i + (0.0 if i == 0 else -0.1)
        end = 1.05 + 2.7 * i if i < 3 else 9.15
        axes.add_patch(
            FancyArrowPatch(
                (start + 0.02, y), (end, y), arrowstyle="-|>", mutation_scale=11, color=MUTED, shrinkA=0, shrinkB=1
            )
        )
    for i in range(3):
        corner, shape = (1.12 + 2.7 * i, y - 0.48), "round,pad=0,rounding_size=0.18"
        axes.add_patch(FancyBboxPatch(corner, 1.66, 0.96, boxstyle=shape, facecolor=colour + "22", edgecolor=colour))
        axes.text(1.95 + 2.7 * i, y, f"layer {i + 1}", ha="center", va="center")


def draw_curves(axes: Axes, errors: Errors) -> None:
    """Relative error after each layer, with the names at the ends of the lines."""
    steps = range(1, LAYERS + 1)
    lines = [
        (errors.piled, ORANGE, "-", "pruned layer\nby layer:\nit piles up", 0.0),
        (errors.rebuilt, BLUE, "-", "rebuilt by\nLLM-Barber", -0.018),
        (errors.own, MUTED, (0, (3, 2)), "each layer\nfor itself", 0.0),
    ]
    for values, colour, style, label, shift in lines:
        axes.plot(steps, values.tolist(), color=colour, linestyle=style, linewidth=2, marker="o", markersize=5)
        axes.text(
            LAYERS + 0.3, float(values[-1]) + shift, label, color=colour, va="center", fontsize=9.5, linespacing=1.1
        )
    axes.set(xlabel="layer", ylim=(0, 0.32), xticks=list(steps), xlim=(0.8, LAYERS + 0.1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_title(
        "Relative error of the output after each layer", loc="left", fontsize=10.5, fontweight="bold", x=-0.16, pad=12
    )
    axes.grid(axis="y", color=LINES)
    axes.set_axisbelow(True)


def draw_rebuilding() -> Figure:
    """Figure 1b: weight times gradient gives the score, and the score rebuilds the pattern."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(6, 6, generator=generator).abs().clamp(max=2.2)
    gradient = torch.randn(6, 6, generator=generator).abs().clamp(min=0.05, max=2.2)
    keep = keep_per_layer(weight, 0.5)
    score = weight * gradient
    result = exchange([score], [keep], "layer", 0.75, None)
    new = result.keep[0]
    figure = Figure(figsize=(9, 3.2))
    panels = [
        ("|weight|", "magnitude keeps the large half", weight, keep),
        ("|gradient|", "of the sub-block's output error", gradient, torch.ones_like(keep)),
        ("score", f"{result.inverted[0]} pairs stand in the wrong order", score, keep),
        ("rebuilt", f"{result.grown[0]} of these pairs are exchanged", score, new),
    ]
    for i, (title, below, values, kept) in enumerate(panels):
        axes = figure.add_axes((0.015 + 0.252 * i, 0.262, 0.214, 0.602))
        draw_matrix(axes, values, kept)
        axes.set_title(title, fontsize=12, fontweight="bold", pad=6)
        figure.text(0.122 + 0.252 * i, 0.19, below, ha="center", fontsize=8.5, color=MUTED)
        if i < 3:
            figure.text(0.248 + 0.252 * i, 0.563, ("×", "=", "→")[i], ha="center", va="center", fontsize=18)
    for cells, colour in ((new & ~keep, BLUE), (keep & ~new, ORANGE)):
        for axes in figure.axes[2:]:
            outline(axes, cells, colour)
    draw_legend(figure)
    return figure


def draw_matrix(axes: Axes, values: Tensor, keep: Tensor) -> None:
    """Kept values as green tiles, the deeper the larger; pruned ones pale with a cross."""
    top = float(values.max())
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            kept = bool(keep[row, column])
            shade = 0.12 + 0.78 * value / top
            colour = to_rgba(GREEN, shade) if kept else to_rgba(PALE)
            axes.add_patch(Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, facecolor=colour, linewidth=0))
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color=text_colour(kept, shade),
            )
            if not kept:
                axes.plot([column + 0.12, column + 0.88], [row + 0.88, row + 0.12], color=STROKE, linewidth=1)
    axes.set(xlim=(-0.06, 6.06), ylim=(6.06, -0.06), aspect="equal")
    axes.axis("off")


def text_colour(kept: bool, shade: float) -> str:
    """White on deep tiles, grey where the weight is gone."""
    if not kept:
        return MUTED
    return "white" if shade > 0.7 else INK


def outline(axes: Axes, cells: Tensor, colour: str) -> None:
    """A frame around every marked cell."""
    for row, column in cells.nonzero().tolist():
        axes.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor=colour, linewidth=2.4))


def draw_legend(figure: Figure) -> None:
    """What tiles, strokes and frames mean, in one line."""
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.12))
    axes.set(xlim=(0, 90), ylim=(0, 4))
    axes.axis("off")
    entries = [
        (6.0, "kept", GREEN, GREEN),
        (17.5, "pruned", PALE, PALE),
        (31.0, "grown: pruned, but of high score", "white", BLUE),
        (61.0, "dropped: kept, but of low score", "white", ORANGE),
    ]
    for x, label, face, edge in entries:
        axes.add_patch(
            Rectangle(
                (x, 1.1), 2.0, 1.9, facecolor=to_rgba(face, 0.7), edgecolor=edge, linewidth=0 if face == edge else 2.2
            )
        )
        if face == PALE:
            axes.plot([x + 0.3, x + 1.7], [1.4, 2.7], color=STROKE, linewidth=1)
        axes.text(x + 2.8, 2.0, label, va="center", fontsize=9.5)


if __name__ == "__main__":
    main()
