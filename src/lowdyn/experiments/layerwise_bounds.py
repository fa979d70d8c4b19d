"""*layerwise-bounds*: trained linear classifiers, the theorem's assumptions measured on them, and its bounds.

Wang et al. 2023 (arXiv 2311.02960): K classes of n samples, networks of width d and K outputs from orthogonal
weights of scale ε, trained to (nearly) zero loss. With orthonormal samples the run goes through the exact reduction
and is expanded at its end, at any width; unit-norm Gaussian samples are trained in full.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch.nn.functional import one_hot

from lowdyn.dynamics import Descent, gradient_descent, reduce_network, stable_lr
from lowdyn.experiments.collapse import balanced
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.networks import DeepLinearNetwork
from lowdyn.observe import layerwise_bounds
from lowdyn.problems import Regression


def run(
    *,
    inputs: str,
    width: int,
    depth: int,
    classes: int,
    per_class: int,
    init_scale: float,
    generator: torch.Generator,
    shuffled: bool = False,
) -> xr.Dataset:
    """Return what :func:`lowdyn.observe.layerwise_bounds` measures, with the ``final_loss`` that training ended at.

    ``shuffled`` measures the features by permuted labels: a negative control.
    """
    data, labels = balanced(inputs, width, classes, per_class, generator)
    problem = Regression(data, one_hot(labels, classes).T.to(data.dtype), "sum")
    network = DeepLinearNetwork((*[width] * depth, classes), init_scale, generator=generator)
    rule = Descent(lr=0.2 * stable_lr(problem, depth, weights=network.weights))
    trained = reduce_network(network, problem) if inputs == "orthonormal" else network
    loss = gradient_descent(trained, problem, rule, 200_000, every=500, tol=1e-16)["loss"]
    network = trained if isinstance(trained, DeepLinearNetwork) else trained.expand()
    measured = labels[torch.randperm(len(labels), generator=generator)] if shuffled else labels
    bounds = layerwise_bounds(network, data, measured, classes)
    return bounds.assign(final_loss=float(loss[-1])).astype(float)


def _cells(depth: list[int], width: list[int]) -> Plan:
    shape = {"classes": 5, "per_class": 10, "init_scale": 0.5}
    published = grid(inputs="orthonormal", depth=8, width=50, **shape)
    wide = grid(inputs="orthonormal", depth=depth, width=width, **shape)
    near = grid(inputs="gaussian", depth=6, width=50, classes=3, per_class=10, init_scale=0.3)
    return Plan(published + wide + near)


def _seeds(plan: Plan, seeds: int) -> Plan:
    return Plan(plan.cells, seeds)


LAYERWISE_BOUNDS = Experiment(
    "layerwise-bounds",
    run,
    {
        "smoke": _cells([3], [200]),
        "quick": _seeds(_cells([2, 3, 4, 5], [200]), 3),
        "paper": _seeds(_cells([2, 3, 4, 5], [200, 450, 700]), 10),
    },
)
