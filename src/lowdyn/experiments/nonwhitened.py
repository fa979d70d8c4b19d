"""*nonwhitened*: the theorem's setting without white inputs, where it holds only nearly.

Yaras et al. 2023 (arXiv 2306.01154): d_x = 30, d_y = 3, 300 Gaussian samples, L = 3, ε = 1, lr 1 on the mean loss,
10 000 steps. Beside it ours, a negative control: the same samples with the rows of X scaled, far from white.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr

from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.networks import DeepLinearNetwork
from lowdyn.observe import Spectra
from lowdyn.problems import Regression


def run(
    *,
    width: int,
    outputs: int,
    samples: int,
    depth: int,
    init_scale: float,
    lr: float,
    steps: int,
    condition: float,
    generator: torch.Generator,
) -> xr.Dataset:
    """Return loss and singular values over (step, layer), and at the end ``update_values`` of W_l(t) − W_l(0).

    Targets are Gaussian too: nothing about the data is low-rank but the number of outputs. The rows of the inputs are
    scaled from 1 down to 1/``condition``, geometrically.
    """
    inputs, targets = (
        torch.randn(rows, samples, generator=generator, dtype=torch.float64) for rows in (width, outputs)
    )
    inputs *= torch.logspace(0, -math.log10(condition), width, dtype=inputs.dtype)[:, None]
    network = DeepLinearNetwork((*[width] * depth, outputs), init_scale, generator=generator)
    start = [weight.clone() for weight in network.weights]
    descent = Descent(lr=lr)
    trajectory = gradient_descent(
        network, Regression(inputs, targets), descent, steps, record=Spectra(top=0), every=steps // 100
    )
    updates = np.full((depth, width), np.nan)
    for layer, (now, then) in enumerate(zip(network.weights, start, strict=True)):
        values = torch.linalg.svdvals(now - then)
        updates[layer, : len(values)] = values
    return (
        trajectory[["loss", "singular_values"]]
        .assign_coords(layer=range(1, depth + 1))
        .assign(update_values=(("layer", "index"), updates))
    )


CELLS = grid(width=30, outputs=3, samples=300, depth=3, init_scale=1.0, lr=1.0, steps=10_000, condition=[1.0, 30.0])
NONWHITENED = Experiment(
    "nonwhitened", run, {"smoke": Plan(CELLS), "quick": Plan(CELLS, seeds=3), "paper": Plan(CELLS, seeds=10)}
)
