"""Full-batch descent against its own matrix products, timed alone in the same run.

A square factorization of depth L costs 3(L − 1) products a step: L − 1 forward, L − 1 to pull the residual back,
L − 1 for gradients (those of the first factor need none). The yardstick makes exactly these, each on matrices of its
own in the layout that it has in a step, and nothing else. What `gradient_descent` adds to them is looked at here.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from timing import finish, medians, report

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.problems import Factorization, low_rank_target

DEPTH = 3


def compare(width: int, steps: int, *, runs: int | None = None, repeats: int = 7, **rule: float) -> float:
    """Return the time of ``steps`` updates over that of their products alone."""
    generator = torch.Generator().manual_seed(0)
    target = low_rank_target(width, width, rank=min(10, width // 3), generator=generator)
    network = DeepLinearNetwork((width,) * (DEPTH + 1), 1e-2, generator=generator, runs=runs)
    problem = Factorization(target)
    batch = () if runs is None else (runs,)
    multiply = torch.mm if runs is None else torch.bmm
    weights, features, pulled, gradients = (
        [torch.randn(*batch, width, width, dtype=torch.float64, generator=generator) for _ in range(DEPTH)]
        for _ in range(4)
    )

    def products() -> None:
        for _ in range(steps):
            for layer in range(1, DEPTH):
                multiply(weights[layer], features[layer - 1], out=features[layer])
            for layer in reversed(range(1, DEPTH)):
                multiply(weights[layer].mT, pulled[layer], out=pulled[layer - 1])
                multiply(pulled[layer], features[layer - 1].mT, out=gradients[layer])

    def descent() -> None:
        gradient_descent(network, problem, Descent(lr=1e-3, **rule), steps, every=steps)

    if width**2 * width * (runs or 1) < 4e6:  # as gradient_descent does for small products
        torch.set_num_threads(1)
    times = medians({"products": products, "descent": descent}, repeats=repeats)
    return times["descent"] / times["products"]


if __name__ == "__main__":
    products = "its matrix products alone"
    kept = [
        report(
            "full network, d = 1000, L = 3",
            products,
            compare(1000, 20, repeats=5),
            1.2,
            "full-batch step at width 1000, L = 3",
        ),
        report("full network, d = 1000, heavy ball", products, compare(1000, 20, repeats=5, momentum=0.9), 1.2),
        report("full network, d = 300", products, compare(300, 100, repeats=15), 1.2, "full-batch step at width 300"),
        report(
            "32 runs at width 30",
            "a bare torch.bmm loop",
            compare(30, 400, runs=32, repeats=21),
            1.5,
            "a step of 32 runs side by side at width 30, L = 3",
        ),
    ]
    finish(kept)
