"""*near-orthonormal*: K = 3 classes of n = 10 unit-norm Gaussian samples in d = 50 dimensions, depth 6.

Wang et al. 2023 (arXiv 2311.02960), separation figure: ε = 0.3, rate 0.005 on the sum loss. The same network on
exactly orthonormal samples stands beside it: there the class means *start* as far apart as they can be.
"""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr

from lowdyn.experiments.collapse import balanced, train_and_measure
from lowdyn.experiments.experiment import Experiment, Plan, grid


def run(
    *,
    generator: torch.Generator,
    inputs: str,
    width: int = 50,
    classes: int = 3,
    per_class: int = 10,
    **settings: Any,
) -> xr.Dataset:
    """Return curve and layer metrics; ``inputs`` is "gaussian" or "orthonormal"."""
    data, labels = balanced(inputs, width, classes, per_class, generator)
    return train_and_measure(data, labels, classes=classes, generator=generator, reduction="sum", tol=1e-10, **settings)


CELLS = grid(depth=6, init_scale=0.3, lr=0.005, inputs=["gaussian", "orthonormal"])
NEAR_ORTHONORMAL = Experiment(
    "near-orthonormal",
    run,
    {"smoke": Plan(CELLS, seeds=2), "quick": Plan(CELLS, seeds=10), "paper": Plan(CELLS, seeds=10)},
)
