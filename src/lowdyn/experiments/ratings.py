"""*ratings*: films rated by users, completed by a wide deep network and by its compressed form.

Kwon et al. 2024 (arXiv 2311.05061) complete MovieLens-100K with r = 10. Here the biases of users and films are taken
off first, fitted to the training ratings; three factors follow what is left: of full width from an orthogonal start,
and of width 2r between the leading singular vectors of the surrogate (1/p) Ω⊙R, outer factors merged. A tenth of the
training ratings is held out and says when to stop; the error is that on the test ratings of the set's own folds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from lowdyn.data import RatingSet
from lowdyn.dynamics import Descent, gradient_descent, stable_lr
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.linalg import leading_singular_vectors
from lowdyn.networks import DeepLinearNetwork
from lowdyn.numerals import thousands
from lowdyn.problems import Completion
from lowdyn.recovery import compressed_factors
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.observations import Observations
from lowdyn.trajectory import Record

RIDGE = 4.0  # of the biases, in ratings


def run(
    *,
    data: tuple[RatingSet],
    users: int,
    films: int,
    fold: int,
    rank: int,
    init_scale: float,
    lr_fraction: float,
    momentum: float,
    steps: int,
    every: int,
    generator: torch.Generator,
    outer_shuffled: bool = False,
) -> xr.Dataset:
    """Return over ``network`` (original, compressed) and ``step`` the root mean square errors ``validation_error`` and
    ``test_error``, the seconds a step takes and, at the step of least validation error, the step, the test error and
    the time so far; and the test error ``bias_error`` of the biases alone.

    ``users`` and ``films`` with most ratings are kept. ``outer_shuffled`` compresses to the right singular vectors for
    the wrong rows and columns, which must fail.
    """
    kept = data[0].busiest(users, films)
    base, test = (part.among(*kept) for part in data[0].fold(fold))
    held = torch.rand(len(base), generator=generator).numpy() < 0.1
    train, validation = base.select(~held, "train"), base.select(held, "validation")
    biases = Biases.fit(Observations.read(train.matrix()), "bias", RIDGE)
    target, mask = torch.zeros(base.shape, dtype=torch.float64), torch.zeros(base.shape, dtype=torch.bool)
    target[train.rows, train.columns] = torch.from_numpy(_rest(train, biases))
    mask[train.rows, train.columns] = True
    problem = Completion(target, mask)
    width = min(base.shape)
    original = DeepLinearNetwork((base.shape[1], width, width, base.shape[0]), init_scale, generator=generator)
    compressed = _compressed(problem, rank, init_scale, generator if outer_shuffled else None)
    lr = lr_fraction * stable_lr(problem, 3, momentum=momentum)
    pairs = {"validation": validation, "test": test}
    judged = _Errors({name: (one, torch.from_numpy(_rest(one, biases))) for name, one in pairs.items()})
    results = {
        name: _descent(network, problem, Descent(lr, momentum=momentum), steps, every, judged)
        for name, network in (("original", original), ("compressed", compressed))
    }
    out = xr.concat(list(results.values()), dim="network").assign_coords(network=list(results))
    alone = float(np.sqrt(np.mean(_rest(test, biases) ** 2)))
    used = f"{thousands(sum(map(len, (train, validation, test))))} of {thousands(data[0].full_size)} ratings"
    return out.assign(bias_error=alone).assign_attrs(described(data[0]) | {"used": used})


def _rest(ratings: RatingSet, biases: Biases) -> NDArray[np.float64]:
    return ratings.values - biases.at(ratings.rows, ratings.columns)


def _compressed(
    problem: Completion, rank: int, init_scale: float, shuffling: torch.Generator | None
) -> DeepLinearNetwork:
    """Return [ε Vᵀ, ε I, ε U] of width 2r (theory §3, spectral start and merged outer factors)."""
    left, _, right = leading_singular_vectors(problem.surrogate(), 2 * rank)
    if shuffling is not None:
        left, right = (frame[torch.randperm(len(frame), generator=shuffling)] for frame in (left, right))
    return compressed_factors(left, right, (init_scale,) * 3, outer="merged")


@dataclass(frozen=True)
class _Errors:
    """A probe: the errors on held-out and on test ratings, and the clock."""

    judged: dict[str, tuple[RatingSet, Tensor]]
    model: DeepLinearNetwork | None = None
    coords: dict[str, Any] = field(default_factory=dict)

    def begin(self, model: DeepLinearNetwork) -> _Errors:
        return replace(self, model=model)

    def __call__(self, step: int) -> Record:
        assert self.model is not None
        seen = {f"{name}_error": ((), _error(self.model, *pair)) for name, pair in self.judged.items()}
        return {**seen, "clock": ((), time.perf_counter())}


def _descent(
    network: DeepLinearNetwork, problem: Completion, rule: Descent, steps: int, every: int, judged: _Errors
) -> xr.Dataset:
    data = gradient_descent(network, problem, rule, steps, judged, every)
    seconds = data["clock"] - data["clock"][0]
    best = int(np.argmin(data["validation_error"].values))
    chosen = {"best_step": data["step"][best], "best_error": data["test_error"][best], "best_seconds": seconds[best]}
    numbers = {name: float(value) for name, value in chosen.items()}
    numbers["step_seconds"] = float(seconds[-1]) / steps
    return data[["validation_error", "test_error"]].assign(numbers)


def _error(network: DeepLinearNetwork, ratings: RatingSet, rest: Tensor) -> float:
    """Root mean square of (W_3 W_2 W_1)_ij − rest over the ratings; no entry between them is formed."""
    first, second, third = network.weights
    estimate = ((third @ second)[ratings.rows] * first.mT[ratings.columns]).sum(dim=1)
    return float((estimate - rest).square().mean().sqrt())


def _cells(users: int, films: int, folds: list[int], steps: int, lr_fraction: float = 0.02) -> Plan:
    return Plan(
        grid(
            users=users,
            films=films,
            fold=folds,
            rank=10,
            init_scale=0.2,
            lr_fraction=lr_fraction,
            momentum=0.9,
            steps=steps,
            every=5,
        )
    )


RATINGS = Experiment(
    "ratings",
    run,
    {
        "smoke": _cells(100, 150, [1], 200),
        "quick": _cells(200, 300, [1, 2, 3, 4, 5], 200),
        "paper": _cells(943, 1682, [1, 2, 3, 4, 5], 400),
    },
    data=(("movielens_100k",),),
)
