"""*depth-width*: completion with two and three factors of growing width, and from more and more observed entries.

Yaras et al. 2023 (arXiv 2306.01154): d = 100, r = 10, ε = 1e-3, 30 % observed, widths 10 … 100, 5 trials, 60 000 steps
of η_eff = 3e-2 (three factors) and 1e-2 (two) on the sum of squares, until the mean over all d² entries is below 1e-10.
Trials run side by side; at smaller widths d the same shares of the largest stable rate are taken.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import Experiment, Plan, Settings, grid
from lowdyn.experiments.recovery import UnseenError, random_mask
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Completion, low_rank_target

TRAINED = 1e-10  # ½ mean over all entries of the squares on the observed ones


def run(
    *,
    size: int,
    rank: int,
    depth: int,
    width: int,
    observed_fraction: float,
    lr: float,
    max_steps: int,
    trials: int,
    generator: torch.Generator,
    init_scale: float = 1e-3,
    every: int = 100,
) -> xr.Dataset:
    """Return per ``trial`` the relative ``error`` on unseen entries, ``recovery_error`` (½ mean over all d² entries of
    its squares, as published), the final ``loss`` on the same scale and the ``steps`` it took, NaN if not enough."""
    target = low_rank_target(size, size, rank=rank, generator=generator, runs=trials)
    mask = random_mask(trials, size, size, observed_fraction=observed_fraction, generator=generator)
    network = DeepLinearNetwork((size, *[width] * (depth - 1), size), init_scale, generator=generator, runs=trials)
    problem = Completion(target, mask, reduction="sum")
    trajectory = gradient_descent(network, problem, Descent(lr=lr), max_steps, every=every, tol=TRAINED * size**2)
    losses = trajectory["loss"].values / size**2
    last = np.isfinite(losses).sum(axis=0) - 1
    final = losses[last, np.arange(trials)]
    measure = UnseenError(target, mask)
    error = measure.of(network.end_to_end())
    return xr.Dataset(
        {
            "error": ("trial", error.numpy()),
            "recovery_error": ("trial", (0.5 * (error * measure.norm).square() / size**2).numpy()),
            "loss": ("trial", final),
            "steps": ("trial", np.where(final < TRAINED, trajectory["step"].values[last], np.nan)),
        }
    )


def _cells(size: int, rank: int, widths: list[int], fractions: list[float], observed: float, **options: float) -> Plan:
    rates = {3: 3e-2, 2: 1e-2}  # as published, at d = 100 and 30 % observed
    cells: list[Settings] = []
    for depth, published in rates.items():
        for width, fraction in [(width, observed) for width in widths] + [(size, one) for one in fractions]:
            # The stable rate goes as 1/(p σ_1^{2(L−1)/L}), σ_1 near 2√d; below 30 % no longer: masks of few entries are
            # far from their mean, and products that fit these have larger singular values (at 10 % one run in five
            # could not take 9e-2).
            lr = published * min(1.0, 0.3 / fraction) * (100 / size) ** ((depth - 1) / depth)
            cells += grid(
                size=size, rank=rank, depth=depth, width=width, observed_fraction=fraction, lr=round(lr, 6), **options
            )
    return Plan(tuple(cells))


DEPTH_WIDTH = Experiment(
    "depth-width",
    run,
    {
        "smoke": _cells(40, 3, [10, 20, 40], [0.3, 0.5], 0.4, init_scale=3e-3, max_steps=6000, trials=3),
        "quick": _cells(50, 4, [10, 20, 30, 40, 50], [0.25, 0.3, 0.35, 0.5], 0.4, max_steps=20_000, trials=3),
        "paper": _cells(
            100, 10, [*range(10, 101, 10)], [0.1, 0.2, 0.25, 0.4, 0.5, 0.6], 0.3, max_steps=60_000, trials=5
        ),
    },
)
