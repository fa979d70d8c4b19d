"""*evolution*: the SVD of every weight while a deep linear network factorizes a low-rank matrix.

Yaras et al. 2023 (arXiv 2306.01154), theorem figure: d = 30, r = 3, L = 3, ε = 1, lr 1 on the mean loss
(η_eff = 1/900), 50 steps. It is small enough to run as published at every scale.
"""

from __future__ import annotations

import torch
import xarray as xr

from lowdyn.dynamics import Descent, gradient_descent, inert_scales
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.starts import start_with_frames
from lowdyn.observe import Spectra
from lowdyn.problems import Factorization, low_rank_target


def run(
    *,
    width: int,
    rank: int,
    depth: int,
    init_scale: float,
    lr: float,
    steps: int,
    generator: torch.Generator,
    start: str = "orthogonal",
    disturbance: float = 0.0,
) -> xr.Dataset:
    """Return spectra over (step, layer, index), angles against step 1 and, as ``frame_…``, against the frames."""
    problem = Factorization(low_rank_target(width, width, rank=rank, generator=generator))
    network, frames = start_with_frames(
        (width,) * (depth + 1), init_scale, problem, generator, start=start, disturbance=disturbance
    )
    descent = Descent(lr=lr)
    predicted = inert_scales(frames, problem, descent, steps)
    probes = [Spectra(top=rank, reference=1), Spectra(top=rank, reference=frames.by_layer(), prefix="frame_")]
    trajectory = gradient_descent(network, problem, descent, steps, record=probes)
    trajectory = trajectory.drop_vars("frame_singular_values").assign(predicted_scale=(("step", "layer"), predicted))
    return trajectory.assign_coords(layer=range(1, depth + 1))


PAPER = grid(width=30, rank=3, depth=3, init_scale=1.0, lr=1.0, steps=50)
EVOLUTION = Experiment(
    "evolution", run, {"smoke": Plan(PAPER), "quick": Plan(PAPER, seeds=3), "paper": Plan(PAPER, seeds=10)}
)
