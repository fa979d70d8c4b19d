"""*theorem* at widths where the full run is out of reach: by the exact reduction, its first steps held against the
full network.

Yaras et al. 2023 (arXiv 2306.01154), main theorem. The rate is a fraction of the largest stable one.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from lowdyn.dynamics import Descent, gradient_descent, inert_scales, invariant_frames, reduce_network, stable_lr
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.recovery import relative_difference
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Factorization, low_rank_target


def run(
    *,
    width: int,
    outputs: int,
    rank: int,
    depth: int,
    init_scale: float,
    steps: int,
    checked_steps: int,
    lr_fraction: float,
    generator: torch.Generator,
    disturbance: float = 0.0,
) -> xr.Dataset:
    """Return loss and inert scales of the reduced run over (step, layer), and ``checked_difference``.

    The latter is the largest entry by which full and expanded weights differ after ``checked_steps`` steps, over
    the largest singular value. ``predicted_scale`` is the scalar recursion by itself. ``disturbance`` times a Gaussian
    matrix is added to W_1 of the full network once it has been reduced: a negative control.
    """
    problem = Factorization(low_rank_target(outputs, width, rank=rank, generator=generator))
    network = DeepLinearNetwork((*[width] * depth, outputs), init_scale, generator=generator)
    rule = Descent(lr=lr_fraction * stable_lr(problem, depth, weights=network.weights))
    early, small = reduce_network(network, problem), reduce_network(network, problem)
    predicted = inert_scales(invariant_frames(network, problem), problem, rule, steps, every=steps // 20)

    if disturbance:
        first = network.weights[0]
        first.add_(disturbance * torch.randn(first.shape, generator=generator, dtype=first.dtype))
    gradient_descent(early, problem, rule, checked_steps, every=checked_steps)
    gradient_descent(network, problem, rule, checked_steps, every=checked_steps)
    losses, scales = [float(small.loss())], [small.inert_scale[0].numpy().copy()]
    for _ in range(20):
        gradient_descent(small, problem, rule, steps // 20, every=steps)
        losses.append(float(small.loss()))
        scales.append(small.inert_scale[0].numpy().copy())
    return xr.Dataset(
        {
            "loss": ("step", losses),
            "inert_scale": (("step", "layer"), np.array(scales)),
            "predicted_scale": (("step", "layer"), predicted),
            "checked_difference": relative_difference(network, early.expand()),
        },
        coords={"step": np.arange(21) * (steps // 20), "layer": range(1, depth + 1)},
    )


def _plans(outputs: dict[str, int]) -> dict[str, Plan]:
    shapes = {"smoke": (100, 200), "quick": (300, 200), "paper": (1000, 200)}
    return {
        scale: Plan(
            grid(
                width=width,
                outputs=outputs.get(scale, width),
                rank=10,
                depth=3,
                init_scale=[0.3, 0.01],
                steps=6000,
                checked_steps=checked,
                lr_fraction=0.3,
            )
        )
        for scale, (width, checked) in shapes.items()
    }


THEOREM_LARGE_SQUARE = Experiment("theorem-large-square", run, _plans({}))
THEOREM_LARGE_WIDE = Experiment("theorem-large-wide", run, _plans({"smoke": 10, "quick": 10, "paper": 10}))
