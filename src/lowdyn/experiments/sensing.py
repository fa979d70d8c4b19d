"""*sensing*: a low-rank matrix from Gaussian measurements ⟨A_i, Φ⟩, by the original and the compressed network.

Kwon et al. 2024 (arXiv 2311.05061): d = 200, r = 5, m = 4 000, L = 3, ε = 1e-2, entries of A_i from N(0, 1)/m, the loss
½ Σ (⟨A_i, W⟩ − y_i)² at lr 20, which is η_eff = 20/m = 5e-3 since E A*A = I/m; a target of spread singular values, the
spectral start, merged outer factors at the inner rate. At smaller d the same share of the largest stable rate is taken.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.recovery import UnseenError, first_below
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Sensing
from lowdyn.recovery import compress_network, spectral_start


def run(
    *,
    network: str,
    size: int,
    rank: int,
    measurements: int,
    lr: float,
    steps: int,
    generator: torch.Generator,
    depth: int = 3,
    init_scale: float = 1e-2,
    every: int = 25,
    tol: float = 1e-12,
) -> xr.Dataset:
    """Return over ``step`` the relative ``error`` ‖W_{L:1} − Φ‖/‖Φ‖ and the relative ``loss``, and ``steps_to_1e_3``.

    ``network`` is "original" or "compressed".
    """
    target = spread_target(size, rank, generator=generator)
    matrices = torch.randn(measurements, size, size, generator=generator, dtype=torch.float64).div_(measurements)
    problem = Sensing(matrices, matrices.flatten(1) @ target.flatten(), reduction="sum")
    model = DeepLinearNetwork((size,) * (depth + 1), init_scale, generator=generator)
    if network == "compressed":
        model = compress_network(model, problem, rank, start=spectral_start, outer="merged")
    start = float(problem.loss(model.end_to_end()))
    probe = UnseenError(target, None)
    trajectory = gradient_descent(model, problem, Descent(lr=lr), steps, record=probe, every=every, tol=tol * start)
    data = trajectory[["error"]].assign(loss=trajectory["loss"] / start)
    return data.assign(steps_to_1e_3=first_below(data, "error", 1e-3))


def spread_target(size: int, rank: int, *, generator: torch.Generator) -> Tensor:
    """Return the part of a standard Gaussian matrix in its singular values 0, d/2r, 2d/2r, …, ``rank`` of them.

    They are spread over the upper half of the spectrum, where the leading ones would be nearly equal.
    """
    left, values, right_t = torch.linalg.svd(torch.randn(size, size, generator=generator, dtype=torch.float64))
    kept = torch.arange(rank) * (size // (2 * rank))
    return (left[:, kept] * values[kept]) @ right_t[kept]


def _cells(size: int, rank: int, measurements: int, seeds: int, steps: int = 3000) -> Plan:
    lr = round(5e-3 * (200 / size) ** (2 / 3) * measurements, 4)
    networks = ["original", "compressed"]
    return Plan(grid(network=networks, size=size, rank=rank, measurements=measurements, lr=lr, steps=steps), seeds)


SENSING = Experiment(
    "sensing",
    run,
    {"smoke": _cells(30, 2, 400, 1), "quick": _cells(60, 3, 1000, 1), "paper": _cells(200, 5, 4000, 1)},
)
