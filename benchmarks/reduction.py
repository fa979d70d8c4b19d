"""The exact reduction against what the full network costs at least: its matrix products at width 1000.

The floor of a full step at depth 3 is six 1000 x 1000 products. A run to relative loss 1e-6 is timed with set-up and
expansion; the full run's floor is its number of steps times that.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time

import numba
import numpy as np
import torch
from timing import finish, medians, report

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.dynamics import sample_reduced_network
from lowdyn.linalg import random_orthogonal
from lowdyn.problems import FactoredTarget, Factorization, low_rank_target

WIDTH, RANK, DEPTH, STEPS = 1000, 10, 3, 20_000


@numba.njit
def products_of(matrices: np.ndarray, out: np.ndarray, steps: int) -> None:
    """Six products a step, compiled, and nothing else."""
    for _ in range(steps * 6):
        np.dot(matrices[0], matrices[1], out)


def compiled_step() -> list[bool]:
    """Return whether a step of the core costs little more than its products, and little of the full step."""
    generator = torch.Generator().manual_seed(0)
    problem = Factorization(low_rank_target(WIDTH, WIDTH, rank=RANK, generator=generator))
    network = DeepLinearNetwork((WIDTH,) * (DEPTH + 1), 1e-3, generator=generator)
    rule = Descent(lr=1e3)
    small = reduce_network(network, problem)
    pair = np.random.default_rng(0).standard_normal((2, 2 * RANK, 2 * RANK))
    out = np.empty((2 * RANK, 2 * RANK))
    wide = torch.randn(2, WIDTH, WIDTH, dtype=torch.float64, generator=generator)
    wide_out = torch.empty(WIDTH, WIDTH, dtype=torch.float64)

    def full_floor() -> None:
        for _ in range(6):
            torch.mm(wide[0], wide[1], out=wide_out)

    times = medians(
        {
            "step": lambda: gradient_descent(small, problem, rule, STEPS, every=STEPS),
            "products": lambda: products_of(pair, out, STEPS),
            "full": full_floor,
            "setup": lambda: reduce_network(network, problem),
        },
        repeats=5,
    )
    small = reduce_network(network, problem)
    began = time.perf_counter()
    small = reduce_network(network, problem)
    start = float(small.loss())
    trajectory = gradient_descent(small, problem, rule, 100_000, every=100, tol=1e-6 * start)
    small.expand()
    whole, steps = time.perf_counter() - began, int(trajectory["step"][-1])
    floor = times["full"]
    print(
        f"     relative loss 1e-6 after {steps} steps, {whole:.2f} s; six products of a full step {floor * 1e3:.0f} ms"
    )
    return [
        report("compiled step, k = 20, L = 3", "its six products", times["step"] / times["products"], 3),
        report(
            "compiled step",
            "the six products of a full step",
            times["step"] / STEPS / floor,
            1 / 10_000,
            "a reduced step (cores 20 x 20) at width 1000",
        ),
        report("set-up at d = 1000", "three full steps' products", times["setup"] / (3 * floor), 1),
        report(
            "run to 1e-6, d = 1000",
            "the products of the full run",
            whole / (steps * floor),
            1 / 3000,
            "a run to relative loss 1e-6 at width 1000, set-up and expansion included",
        ),
    ]


def many_runs() -> bool:
    """Return whether 1 000 runs in one call use both cores well, by the single compiled loop's own speed."""
    generator = torch.Generator().manual_seed(0)
    runs, steps, width, rank = 1000, 2000, 100, 5
    target = low_rank_target(width, width, rank=rank, generator=generator)
    problem = Factorization(target)
    network = DeepLinearNetwork((width,) * (DEPTH + 1), 1e-2, generator=generator, runs=runs)
    for weights in network.weights:  # runs differ in the scale of the start and in the rate
        weights.mul_(torch.linspace(0.5, 2.0, runs, dtype=torch.float64)[:, None, None])
    rates = torch.linspace(5.0, 10.0, runs)
    many, one = reduce_network(network, problem), reduce_network(network.run(0), problem)
    cores = min(2, numba.config.NUMBA_NUM_THREADS)  # those it may use
    numba.set_num_threads(cores)
    times = medians(
        {
            "many": lambda: gradient_descent(many, problem, Descent(lr=rates), steps, every=steps),
            "one": lambda: gradient_descent(one, problem, Descent(lr=5.0), 50 * steps, every=50 * steps),
        },
        repeats=5,
    )
    ideal = times["one"] / (50 * steps) * steps * runs / cores
    return report(
        f"1 000 runs at d = 100, {cores} cores", "the ideal throughput's time", times["many"] / ideal, 1 / 0.7
    )


def a_million_wide() -> bool:
    """Return whether width 10⁶, rank 10, 10 000 steps stay under ten seconds."""
    generator = torch.Generator().manual_seed(0)
    left, right = (random_orthogonal(1_000_000, RANK, generator=generator) for _ in range(2))
    problem = FactoredTarget(left, torch.linspace(2.0, 1.0, RANK), right, reduction="sum")
    began = time.perf_counter()
    small = sample_reduced_network(problem, DEPTH, 1e-2, generator=generator)
    gradient_descent(small, problem, Descent(lr=0.05), 10_000, every=100)
    return report("width 1 000 000, 10 000 steps", "ten seconds", (time.perf_counter() - began) / 10, 1)


if __name__ == "__main__":
    finish([*compiled_step(), many_runs(), a_million_wide()])
