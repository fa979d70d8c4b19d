"""*cost*: seconds of a step of completion against the width, the number of observed entries in a row fixed.

What is timed is the step alone, so values and frames are random. The least of several times is what other work on the
machine disturbed least. d = 100 … 5000, 50 entries a row, L = 3, r̂ = 5.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import xarray as xr
from scipy import sparse

from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import Experiment, Plan, Settings, grid
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Completion
from lowdyn.recovery import compressed_factors
from lowdyn.seeding import drawn_seed


def run(
    *,
    network: str,
    size: int,
    rank: int,
    observed_per_row: int,
    generator: torch.Generator,
    depth: int = 3,
    repeats: int = 5,
    seconds: float = 0.1,
) -> xr.Dataset:
    """Return ``step_seconds``, the least of ``repeats`` stretches of at least ``seconds``, and the ``parameters``."""
    random = np.random.default_rng(drawn_seed(generator, below=2**62))
    columns = np.concatenate([random.permutation(size)[:observed_per_row] for _ in range(size)])
    rows = np.repeat(np.arange(size), observed_per_row)
    values = random.standard_normal(len(rows))
    problem = Completion.from_sparse(sparse.coo_array((values, (rows, columns)), shape=(size, size)), "sum")
    if network == "compressed":
        left, right = (random_orthogonal(size, 2 * rank, generator=generator) for _ in range(2))
        model = compressed_factors(left, right, (1e-3,) * depth)
    else:
        model = DeepLinearNetwork((size,) * (depth + 1), 1e-3, generator=generator)
    rule, steps = Descent(lr=1e-6), 1

    def stretch(steps: int) -> float:
        began = time.perf_counter()
        gradient_descent(model, problem, rule, steps, every=steps)
        return time.perf_counter() - began

    stretch(1)  # compiles
    # The better of two: a hiccup would end the search at a stretch that is mostly set-up.
    while (once := min(stretch(steps), stretch(steps))) < seconds:
        steps = max(2 * steps, int(1.2 * steps * seconds / once))
    taken = [once, *(stretch(steps) for _ in range(repeats - 1))] if once < 10 * seconds else [once]
    weights = sum(weight.numel() for weight in model.weights)
    return xr.Dataset({"step_seconds": min(taken) / steps, "parameters": weights})


def _cells(compressed: list[int], original: list[int]) -> Plan:
    cells: tuple[Settings, ...] = ()
    for network, sizes in (("compressed", compressed), ("original", original)):
        cells += grid(network=network, size=sizes, rank=5, observed_per_row=50)
    return Plan(cells)


COST = Experiment(
    "cost",
    run,
    {
        "smoke": _cells([100, 200, 400, 800], [100, 200, 400]),
        "quick": _cells([100, 200, 500, 1000, 2000, 5000], [100, 200, 500, 1000]),
        "paper": _cells([100, 200, 500, 1000, 2000, 5000], [100, 200, 500, 1000, 2000, 5000]),
    },
)
