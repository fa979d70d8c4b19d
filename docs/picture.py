"""Draw picture.svg, the picture of README and index: `python docs/picture.py`, half a minute on one thread.

Two runs of this library and plain SVG text: the file is small, asks for no font, and its colours, those of the
library's plots, read on a light and on a dark page. Left, every singular value of a deep linear network's first weight
while it learns a target of rank 3; right, D_l of a deep linear classifier, layer by layer, before and after training.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent, layer_metrics
from lowdyn.linalg import random_orthogonal
from lowdyn.plots import PALETTE
from lowdyn.problems import Factorization, Regression, low_rank_target

BLUE, RED, GREY = PALETTE[5], PALETTE[1], "#808080"
WIDTH, HEIGHT, TOP, FOOT = 900, 360, 56, 308
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
Points = Iterable[tuple[float, float]]


def spectra() -> tuple[np.ndarray, np.ndarray]:
    """Return steps (n,) and the singular values (n, 30) of W_1."""
    generator = torch.Generator().manual_seed(2)
    problem = Factorization(low_rank_target(30, 30, rank=3, generator=generator))
    network = DeepLinearNetwork((30, 30, 30, 30), init_scale=1.0, generator=generator)
    run = gradient_descent(network, problem, Descent(lr=1.0), steps=120, record=Spectra(top=0))
    return run["step"].values, run["singular_values"].sel(layer="W1").values


def compression() -> tuple[np.ndarray, np.ndarray]:
    """Return D_l of the input and five hidden layers of a six-layer network, before training and after (claim C17)."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = random_orthogonal(50, 50, generator=generator), torch.arange(5).repeat_interleave(10)
    problem = Regression(inputs, torch.nn.functional.one_hot(labels).T.double())
    network = DeepLinearNetwork((*[50] * 6, 5), init_scale=0.5, generator=generator)
    looks = []
    for steps in (0, 40_000):
        gradient_descent(network, problem, Descent(lr=5.0), steps, every=1000, tol=1e-10)
        metrics = layer_metrics(network, [(inputs.T, labels)], num_classes=5)
        looks.append(metrics["within_between_ratio"].values[:-1])
    return looks[0], looks[1]


def line(points: Points, color: str, width: float = 1.8, dash: str = "") -> str:
    """Return a line through pixels."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    stroke = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{stroke}/>'


def words(x: float, y: float, text: str, color: str = GREY, anchor: str = "start", size: int = 14) -> str:
    """Return text at a pixel."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-size="{size}">{text}</text>'


def axes(left: float, right: float, title: str, label: str) -> list[str]:
    """Return a panel's frame, its title above and what runs to the right below."""
    frame = line([(left, TOP), (left, FOOT), (right, FOOT)], GREY, 1)
    heading = f'<text x="{left}" y="26" fill="{GREY}" font-size="15" font-weight="600">{title}</text>'
    return [frame, heading, words((left + right) / 2, FOOT + 40, label, anchor="middle")]


def left_panel(left: float, right: float) -> list[str]:
    """Draw the singular values: those that learn in colour, the others in grey, one upon another."""
    steps, values = spectra()
    top = float(np.ceil(values.max() * 2) / 2)

    def at(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / steps[-1], FOOT - (FOOT - TOP) * value / top

    parts = axes(left, right, "Singular values of a weight while it learns", "step")
    for tick in np.arange(0, top + 0.1, 1.0):
        parts += [words(left - 8, at(0, tick)[1] + 5, f"{tick:g}", anchor="end", size=12)]
    parts += [words(at(tick, 0)[0], FOOT + 18, f"{tick}", anchor="middle", size=12) for tick in range(0, 121, 40)]
    middle = values.shape[1] // 2
    for index in range(values.shape[1]):
        learns = index < 3 or index >= values.shape[1] - 3
        if learns or index == middle:
            parts.append(line(map(at, steps, values[:, index]), BLUE if learns else RED, 1.8 if learns else 4))
    x, y = at(steps[-1], values[-1, 0])
    parts.append(words(x, y - 12, "2r = 6 directions learn", BLUE, "end"))
    x, y = at(steps[-1], values[-1, middle])
    parts.append(words(x, y - 10, "the other 24 stay one line", RED, "end"))
    return parts


def right_panel(left: float, right: float) -> list[str]:
    """Draw D_l on a logarithmic scale."""
    before, after = compression()
    low, high = np.floor(np.log10(after.min())), np.ceil(np.log10(before.max()))

    def at(layer: float, value: float) -> tuple[float, float]:
        share = (np.log10(value) - low) / (high - low)
        return left + 14 + (right - left - 28) * layer / (len(after) - 1), FOOT - (FOOT - TOP) * share

    parts = axes(left, right, "Scatter within / between classes", "layer (0 is the input)")
    for power in range(int(low), int(high) + 1, 2):
        y = at(0, 10.0**power)[1]
        parts.append(words(left - 8, y + 5, f"{10.0**power:g}", anchor="end", size=12))
    parts += [words(at(k, 1)[0], FOOT + 18, f"{k}", anchor="middle", size=12) for k in range(len(after))]
    for values, color, dash, name, above in (
        (before, GREY, "6 4", "before training", 12),
        (after, BLUE, "", "after", 26),
    ):
        points = [at(layer, value) for layer, value in enumerate(values)]
        parts.append(line(points, color, 2, dash))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in points]
        parts.append(words(points[-2][0], points[-2][1] - above, name, color, "middle"))
    return parts


def main() -> None:
    """Write the picture beside this file."""
    torch.set_num_threads(1)
    parts = [*left_panel(46, 430), *right_panel(506, 886)]
    told = "Singular values of a weight over training, and the compression of features over depth."
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="{FONT}" role="img">'
    path = Path(__file__).with_name("picture.svg")
    path.write_text("\n".join([head, f"<title>{told}</title>", *parts, "</svg>", ""]), encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
