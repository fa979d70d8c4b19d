"""What theory says before a run: the largest stable step, when learning starts, the whole course for two factors."""

from __future__ import annotations

import math
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdyn.arguments import checked_count, checked_matrix, checked_number
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares

TINY = torch.finfo(torch.float64).tiny
TOLERANCE = 1e-9  # largest departure from whiteness or orthonormality that rounding explains


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


def escape_steps(
    problem: LeastSquares,
    depth: int,
    init_scale: float,
    lr: float,
    *,
    overlap: float = 0.0,
    fraction: float = 0.5,
) -> float:
    """Return after about how many steps the leading mode of a small start is learned: u_1ᵀ W_{L:1} v_1 = fraction · σ_1.

    Gradient flow from W_l(0) = εQ_l, orthogonal and square, towards one mode σ u vᵀ of white data X Xᵀ = αI (σ =
    σ_1(Φ)/α) keeps the layers balanced, W_{l+1}ᵀW_{l+1} = W_l W_lᵀ. The flow of the product (Arora, Cohen and
    Hazan 2018, arXiv 1802.06509) then lives on span(u, Q_L…Q_1 v), where it is a symmetric matrix up to a reflection,
    of eigenvalues x^L and −y^L, θ the angle of the first to the mode:

        x' = g x^{L−1} (σ cos²θ − x^L)                            x(0) = y(0) = ε
        y' = −g y^{L−1} (σ sin²θ + y^L)                           g = lr · problem.scale · α per step
        θ' = −g σ cosθ sinθ (x^L − y^L)/(x² − y²)                 cos²θ(0) = (1 + overlap)/2

    and u ᵀW_{L:1}v = x^L cos²θ − y^L sin²θ. This is integrated. ``overlap`` is uᵀQ_L…Q_1v: 0, the default, for a
    random orthogonal start (1/√d up to chance), −1 never escapes, and 1 is the aligned start of Saxe et al. 2014
    (arXiv 1312.6120) and Gidel et al. 2019 (arXiv 1904.13262): θ = 0, and t = ∫ da / (g a^{L−1}(σ − a^L)) from ε on.
    To leading order in ε,

    - L ≥ 3: κ / ((L − 2) g σ ε^{L−2}), κ = 1 aligned, 1.20, 1.28, 1.32, 1.35 for overlap 0 and L = 3, 4, 5, 6
    - L = 2: ln(σ / (ε² (1 + overlap)/2)) / (2 g σ)

    A step of descent counts as one unit of time: the error is of the order of lr. Modes do not see each other to
    that order, so the estimate holds for targets of any low rank, and for fewer outputs than inputs. 0 if the
    start is there already, infinity where there is nothing to learn.

    ValueError: depth below 2 (no plateau to escape from), values out of range, inputs that are not white.

    >>> from lowdyn.problems import Factorization
    >>> problem = Factorization(4 * torch.eye(30)[:, :1] @ torch.eye(30)[:1], reduction="sum")
    >>> [round(escape_steps(problem, depth=3, init_scale=0.01, lr=0.01, overlap=overlap)) for overlap in (0, 1)]
    [3005, 2504]
    """
    from scipy.integrate import solve_ivp  # slow to import, and descent needs this module for its messages

    depth = checked_count("depth", depth, at_least=2)
    init_scale = checked_number("init_scale", init_scale, at_least=TINY)
    lr = checked_number("lr", lr, at_least=TINY)
    overlap = checked_number("overlap", overlap, at_least=-1.0, below=math.nextafter(1.0, 2.0))
    fraction = checked_number("fraction", fraction, at_least=TINY, below=1.0)
    _, values, _, stretch = _modes(problem)
    if len(values) == 0 or overlap == -1.0:
        return math.inf
    top = float(values[0])
    start, cos_squared = init_scale / top ** (1 / depth), (1 + overlap) / 2

    # In units of σ^(1/L) and of time 1/(g σ^(2 − 2/L)); θ by its logarithmic tangent, which falls without bound.
    def slope(_: float, state: np.ndarray) -> list[float]:
        x, y, log_tangent = state
        cos = 1 / (1 + math.exp(2 * log_tangent))
        ratio = sum(x ** (depth - 1 - j) * y**j for j in range(depth)) / (x + y)
        return [x ** (depth - 1) * (cos - x**depth), -(y ** (depth - 1)) * (1 - cos + y**depth), -ratio]

    def learned(_: float, state: np.ndarray) -> float:
        x, y, log_tangent = state
        cos = 1 / (1 + math.exp(2 * log_tangent))
        return x**depth * cos - y**depth * (1 - cos) - fraction


def _spectral_norm(matrices: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrices.to(torch.float64), ord=2).max())
