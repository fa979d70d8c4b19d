"""*factorization*: a wide network, its exact reduction, and the compressed network that drops the inert part.

Yaras et al. 2023 (arXiv 2306.01154): d = 1000, r = 10, L = 3, ε = 1e-3, η_eff = 1e-3, which is 0.38 of the largest
stable rate; other widths take the same fraction. The original run at full length is the reduced one, which is exact;
its first steps are held against the real full-width run.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowdyn.dynamics import Descent, ReducedNetwork, gradient_descent, reduce_network, stable_lr
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.recovery import first_below, relative_difference
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Factorization, LeastSquares, low_rank_target
from lowdyn.recovery import gradient_start


def run(
    *,
    width: int,
    rank: int,
    depth: int,
    init_scale: float,
    lr_fraction: float,
    steps: int,
    checked_steps: int,
    generator: torch.Generator,
    outer_shuffled: bool = False,
) -> xr.Dataset:
    """Return over ``step`` the relative losses of ``original`` and ``compressed``, their end-to-end ``difference``
    over ‖Φ‖ and its ``bound``; and what the check against the full network and the clock said.

    ``outer_shuffled`` compresses to the right frames for the wrong rows and columns: a negative control.
    """
    problem = Factorization(low_rank_target(width, width, rank=rank, generator=generator))
    network = DeepLinearNetwork((width,) * (depth + 1), init_scale, generator=generator)
    rule = Descent(lr=lr_fraction * stable_lr(problem, depth))
    product = network.end_to_end() / init_scale**depth
    reduced = reduce_network(network, problem)
    left, right = gradient_start(network, problem, rank)
    if outer_shuffled:
        left, right = (frame[torch.randperm(width, generator=generator)] for frame in (left, right))
    core, core_problem = _compressed(left, right, problem, depth, init_scale)

    began = time.perf_counter()
    full = DeepLinearNetwork.from_weights(network.weights)
    gradient_descent(full, problem, rule, checked_steps, every=checked_steps)
    full_seconds = time.perf_counter() - began
    early = reduce_network(network, problem)
    gradient_descent(early, problem, rule, checked_steps, every=checked_steps)

    norm = problem.targets.norm()
    start = float(problem.loss(network.end_to_end()))
    rows, recorded, core_seconds = [], np.linspace(0, steps, 101).astype(int), 0.0
    for before, step in zip([0, *recorded[:-1]], recorded, strict=True):
        span = int(step - before)
        gradient_descent(reduced, problem, rule, span, every=max(1, span))
        began = time.perf_counter()
        gradient_descent(core, core_problem, rule, span, every=max(1, span))
        core_seconds += time.perf_counter() - began
        inert = float(reduced.inert_scale.prod())
        original = _end_to_end(reduced, product, inert)
        compressed = left @ core.end_to_end() @ right.mT
        rows.append(
            (
                float(problem.loss(original)) / start,
                float(problem.loss(compressed)) / start,
                float((original - compressed).norm() / norm),
                2 * inert * (width - 2 * rank) ** 0.5 / float(norm),
            )
        )
    names = ("original", "compressed", "difference", "bound")
    curves = {name: ("step", column) for name, column in zip(names, np.array(rows).T, strict=True)}
    data = xr.Dataset(curves, coords={"step": recorded})
    return data.assign(
        checked_difference=relative_difference(full, early.expand()),
        full_step_seconds=full_seconds / checked_steps,
        compressed_step_seconds=core_seconds / steps,
        steps_to_1e_6=first_below(data, "original", 1e-6),
    )


def _compressed(
    left: Tensor, right: Tensor, problem: Factorization, depth: int, init_scale: float
) -> tuple[DeepLinearNetwork, LeastSquares]:
    """Return the network of 2r x 2r factors between frozen U and V, and its problem."""
    core = DeepLinearNetwork.from_weights([init_scale * torch.eye(right.shape[1], dtype=right.dtype)] * depth)
    return core, LeastSquares(None, left.mT @ problem.targets @ right, problem.scale)


def _end_to_end(reduced: ReducedNetwork, product: Tensor, inert: float) -> Tensor:
    """W_{L:1} = B_L W̃_{L:1} B_0ᵀ + Πρ (Q − B_L B_0ᵀ)."""
    first, last = reduced.active[0], reduced.active[-1]
    inside = reduced.core.end_to_end() - inert * torch.eye(first.shape[1], dtype=first.dtype)
    return inert * product + last @ inside @ first.mT


def _cells(width: int, rank: int, steps: int, init_scale: float = 1e-3) -> Plan:
    return Plan(
        grid(
            width=width,
            rank=rank,
            depth=3,
            init_scale=init_scale,
            lr_fraction=0.38,
            steps=steps,
            checked_steps=200,
        )
    )


FACTORIZATION = Experiment(
    "factorization",
    run,
    {"smoke": _cells(100, 5, 20_000), "quick": _cells(300, 10, 20_000), "paper": _cells(1000, 10, 25_000)},
)
