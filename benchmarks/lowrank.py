"""A training step of the lecture's perceptron with two layers as pairs of rank 10, against the dense one's.

784-2000-2000-2000-10, batches of 128, Adam, float32. Memory is the most that is alive at once during a step:
parameters, gradients, Adam's moments and every tensor that the step makes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import copy

import torch
from timing import finish, report
from torch.nn.functional import cross_entropy

from lowdyn import factorize
from lowdyn.lowrank.cost import step_costs
from lowdyn.networks import MLP

WIDTH, RANK, BATCH = 2000, 10, 128


def step() -> list[bool]:
    """Return whether the factorized step is as much cheaper as published."""
    generator = torch.Generator().manual_seed(0)
    dense = MLP((784, WIDTH, WIDTH, WIDTH, 10), generator=generator)
    pairs = copy.deepcopy(dense)
    table = factorize(pairs, ranks=RANK, layers="hidden[23]")
    inputs = torch.randn(BATCH, 784, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    models = {"dense": dense, "pairs": pairs}
    costs = step_costs(models, lambda model: cross_entropy(model(inputs), labels), repeats=15)
    for name, cost in costs.items():
        print(
            f"     {name}: {cost.flops / 1e9:.2f} GFLOPs, {cost.peak_bytes / 2**20:.0f} MiB, "
            f"{cost.seconds * 1e3:.1f} ms a step"
        )
    before, after = costs["dense"], costs["pairs"]
    return [
        report("parameters", "the dense network", table.parameters[1] / table.parameters[0], 0.18),
        report("peak memory of a step", "the dense step", after.peak_bytes / before.peak_bytes, 0.40),
        report(
            "time of a step",
            "the dense step",
            after.seconds / before.seconds,
            1 / 3.5,
            "a step of 2000-wide layers as pairs of rank 10",
        ),
    ]


if __name__ == "__main__":
    finish(step())
