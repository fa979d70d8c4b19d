"""What theory says before a run: the largest stable step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from lowdyn.arguments import checked_count, checked_number
from lowdyn.problems import LeastSquares


def stable_lr(
    problem: LeastSquares,
    depth: int,
    *,
    weights: Sequence[Tensor] = (),
    momentum: float = 0.0,
    nesterov: bool = False,
) -> float:
    """Return the largest learning rate at which descent on a deep linear network is stable.

    Near the balanced solution the curvature of the objective is s λ_1(X Xᵀ) L σ_1^{2(L−1)/L}, σ_1 the largest
    singular value of the solution; a step is stable when lr times that stays below 2 (theory §2), 2(1 + μ) with
    heavy ball and 2(1 + μ)/(1 + 2μ) with Nesterov's momentum. Exact for whitened inputs, on the safe side
    otherwise; infinite when there is nothing to learn. Given starting ``weights``, their own curvature
    s λ_1 Σ_l Π_{j≠l} σ_1(W_j)² counts too: a large start can be stiffer than the solution. With runs, the
    smallest rate over all of them.

    >>> from lowdyn.problems import Factorization
    >>> stable_lr(Factorization(4 * torch.eye(2), reduction="sum"), depth=2)
    0.25
    """
    depth = checked_count("depth", depth, at_least=1)
    momentum = checked_number("momentum", momentum, at_least=0.0)
    top = _spectral_norm(problem.solution())
    curvature = depth * top ** (2 * (depth - 1) / depth)
    if weights:
        squares = [_spectral_norm(weight) ** 2 for weight in weights]
        start = sum(reduce(mul, squares[:layer] + squares[layer + 1 :], 1.0) for layer in range(len(squares)))
        curvature = max(curvature, start)
    stretch = 1.0 if problem.inputs is None else _spectral_norm(problem.inputs) ** 2
    limit = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    curvature *= problem.scale * stretch
    return limit / curvature if curvature > 0 else math.inf


def _spectral_norm(matrices: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrices.to(torch.float64), ord=2).max())
