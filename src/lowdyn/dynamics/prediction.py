"""What theory says before a run: the largest stable step, when learning starts, the whole course for two factors."""

from __future__ import annotations

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
from lowdyn.linalg import spectral_norm
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import LeastSquares, Problem

TINY = torch.finfo(torch.float64).tiny
TOLERANCE = 1e-9  # largest departure from whiteness or orthonormality that rounding explains


def stable_lr(
    problem: Problem,
    depth: int,
    *,
    weights: Sequence[Tensor] = (),
    momentum: float = 0.0,
    nesterov: bool = False,
    scaled: bool = False,
) -> float:
    """Return the largest learning rate at which descent on a deep linear network is stable.

    Near the balanced solution the curvature of the objective is s λ L σ_1^{2(L−1)/L}, σ_1 the largest singular value
    of the solution, λ that of X Xᵀ or the observed fraction of a completion; a step is stable when lr times that
    stays below 2 (theory §2), 2(1 + μ) with heavy ball and 2(1 + μ)/(1 + 2μ) with Nesterov's momentum. Exact for
    whitened inputs, on the safe side otherwise, an estimate by the surrogate for a completion; infinite when there
    is nothing to learn. Given starting ``weights``, their own curvature s λ Σ_l Π_{j≠l} σ_1(W_j)² counts too: a large
    start can be stiffer than the solution. ``scaled`` is for :class:`~lowdyn.dynamics.ScaledDescent`, whose Gram
    matrices take σ_1 out: s λ L. With runs, the smallest rate over all of them.

    >>> from lowdyn.problems import Factorization
    >>> stable_lr(Factorization(4 * torch.eye(2), reduction="sum"), depth=2)
    0.25
    """
    depth = checked_count("depth", depth, at_least=1)
    momentum = checked_number("momentum", momentum, at_least=0.0)
    top, stretch = problem.curvature()
    curvature = depth * (1.0 if scaled else top ** (2 * (depth - 1) / depth))
    if weights and not scaled:
        squares = [spectral_norm(weight) ** 2 for weight in weights]
        start = sum(reduce(mul, squares[:layer] + squares[layer + 1 :], 1.0) for layer in range(len(squares)))
        curvature = max(curvature, start)
    limit = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    curvature *= problem.scale * stretch
    return limit / curvature if curvature > 0 else math.inf


def escape_steps(
    problem: LeastSquares, depth: int, init_scale: float, lr: float, *, overlap: float = 0.0, fraction: float = 0.5
) -> float:
    """Return after about how many steps a small start has learned the leading mode: uᵀW_{L:1}v = fraction · σ.

    Gradient flow from W_l(0) = εQ_l, orthogonal and square, towards a mode σ u vᵀ, with inputs XXᵀ = αI, keeps layers
    balanced. The flow of the product (Arora, Cohen and Hazan 2018, arXiv 1802.06509) stays in span(u, Q_L…Q_1v), where
    up to a reflection it is symmetric, of eigenvalues x^L and −y^L, θ the angle of the first to the mode:

        x' = g x^{L−1} (σ cos²θ − x^L)                      x(0) = y(0) = ε
        y' = −g y^{L−1} (σ sin²θ + y^L)                     g = lr · problem.scale · α, time in steps
        θ' = −g σ cosθ sinθ (x^L − y^L)/(x² − y²)           cos²θ(0) = (1 + overlap)/2

    and uᵀW_{L:1}v = x^L cos²θ − y^L sin²θ. This is integrated. ``overlap`` is uᵀQ_L…Q_1v: 0, the default, for a random
    orthogonal start, up to 1/√d; −1 never escapes; 1 is the aligned start of Saxe et al. 2014 (arXiv 1312.6120) and
    Gidel et al. 2019 (arXiv 1904.13262), θ = 0 and t = ∫ da / (g a^{L−1}(σ − a^L)). To leading order in ε it is

    - L ≥ 3: κ / ((L − 2) g σ ε^{L−2}), κ = 1 aligned, 1.20, 1.28, 1.32, 1.35 for overlap 0 and L = 3, 4, 5, 6
    - L = 2: ln(σ / (ε² (1 + overlap)/2)) / (2 g σ)

    Descent differs from flow by the order of lr σ^{2−2/L}. To leading order modes do not see each other: it holds for
    targets of low rank and fewer outputs than inputs, measured with overlap 0 to 30 % at d = 30 and 10 % at d = 100.
    Where only a fraction p of the entries is seen, pass p · lr. 0 if the start is there already, infinity if there is
    nothing to learn. ValueError: depth below 2 (no plateau), values out of range, inputs not white, several problems.

    >>> from lowdyn.problems import Factorization
    >>> problem = Factorization(torch.diag(torch.tensor([4.0, 0.0, 0.0])), reduction="sum")
    >>> [round(escape_steps(problem, depth=3, init_scale=0.01, lr=0.01, overlap=overlap)) for overlap in (0, 1)]
    [2986, 2487]
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
    start = init_scale / top ** (1 / depth)
    log_tangent = 0.5 * math.log((1 - overlap) / (1 + overlap)) if overlap < 1 else -40.0

    # The state is ln x, ln(y/x), ln tanθ and the time in 1/(g σ ε^(L−2)), x and y in units of σ^(1/L). The
    # independent variable runs with x^(L−2) t, in which the plateau takes no longer than the rise: x' ≤ x.
    def parts(state: np.ndarray) -> tuple[float, float, float]:
        return math.exp(state[0]), math.exp(state[1]), 1 / (1 + math.exp(2 * state[2]))

    def slope(_: float, state: np.ndarray) -> list[float]:
        x, ratio, cos_squared = parts(state)
        growth = cos_squared - x**depth
        shrink = ratio ** (depth - 2) * (1 - cos_squared + (ratio * x) ** depth)
        turn = sum(ratio**power for power in range(depth)) / (1 + ratio)
        return [growth, -shrink - growth, -turn, (start / x) ** (depth - 2)]

    def learned(_: float, state: np.ndarray) -> float:
        x, ratio, cos_squared = parts(state)
        return x**depth * (cos_squared - ratio**depth * (1 - cos_squared)) - fraction

    learned.terminal = True  # type: ignore[attr-defined]
    state = np.array([math.log(start), 0.0, log_tangent, 0.0])
    if learned(0.0, state) >= 0:
        return 0.0
    limits = {"rtol": 1e-10, "atol": 1e-10, "max_step": 1 / depth}  # a longer trial step leaves the range of exp
    course = solve_ivp(slope, (0.0, math.inf), state, "DOP853", events=learned, **limits)
    pace = lr * problem.scale * stretch * top * init_scale ** (depth - 2)
    return float(course.y[3, -1]) / pace if pace > 0 else math.inf


@dataclass(frozen=True, eq=False)
class SaxeSolution:
    """U (d_y, r), s (r,) and V (d_x, r) of the solution U diag(s) Vᵀ, the start's ε, the flow's time of one step.

    >>> from lowdyn.problems import Factorization
    >>> solution = saxe_solution(Factorization([[4.0, 0.0], [0.0, 2.0]], reduction="sum"), init_scale=0.1, lr=0.01)
    >>> solution.end_to_end(100).diagonal().round(decimals=3).tolist(), solution.network(100).sizes
    ([3.528, 0.431], (2, 2, 2))
    """

    left: Tensor
    values: Tensor
    right: Tensor
    init_scale: float
    rate: float

    def strengths(self, steps: Any) -> Tensor:
        """Return a_i after ``steps`` (…), whole or not, as (…, r): the singular values of W_2W_1, float64."""
        times = torch.as_tensor(steps, dtype=torch.float64, device=self.values.device).unsqueeze(-1)
        # The published fraction divided by its exponential, which would overflow.
        return self.values / (1 + (self.values / self.init_scale**2 - 1) * (-2 * self.values * self.rate * times).exp())

    def end_to_end(self, step: float) -> Tensor:
        """Return W_2W_1 = U diag(a) Vᵀ after ``step`` updates, (d_y, d_x)."""
        return (self.left * self.strengths(step)) @ self.right.mT

    def network(self, step: float = 0.0, mixing: Any = None) -> DeepLinearNetwork:
        """Return W_1 = R diag(√a) Vᵀ, W_2 = U diag(√a) Rᵀ; ``mixing`` R (hidden, r), orthonormal, is I by default."""
        root, identity = self.strengths(step).sqrt(), torch.eye(len(self.values)).to(self.values)
        mixing = identity if mixing is None else checked_matrix("mixing", mixing).to(identity)
        if mixing.shape[-1] != len(root) or float((mixing.mT @ mixing - identity).abs().max()) > TOLERANCE:
            raise ValueError(f"mixing must be (hidden, {len(root)}) with orthonormal columns; take torch.linalg.qr")
        return DeepLinearNetwork.from_weights([(mixing * root) @ self.right.mT, (self.left * root) @ mixing.mT])


def saxe_solution(problem: LeastSquares, init_scale: float, lr: float) -> SaxeSolution:
    """Return the course of two factors that start aligned with the data, mode by mode, in closed form.

    With the solution U diag(s) Vᵀ of white data X Xᵀ = αI, from W_1(0) = εRVᵀ and W_2(0) = εURᵀ the modes never mix,
    and gradient flow gives each singular value of the product (Saxe, McClelland and Ganguli 2014, arXiv 1312.6120)

        a(t) = s e^{2sτ} / (e^{2sτ} − 1 + s/a_0),    a_0 = ε²,    τ = lr · problem.scale · α · t

    the solution of a' = 2a(s − a). ``t`` counts steps of plain descent, which follows at a distance of the order
    of ``lr``. ValueError: values out of range, a target of zeros, inputs not white on the rows of Φ, several problems.

    >>> from lowdyn.problems import Factorization
    >>> solution = saxe_solution(Factorization([[4.0, 0.0], [0.0, 2.0]], reduction="sum"), init_scale=0.1, lr=0.01)
    >>> solution.strengths([0, 100, 200]).round(decimals=3).tolist()
    [[0.01, 0.01], [3.528, 0.431], [4.0, 1.875]]
    """
    init_scale = checked_number("init_scale", init_scale, at_least=TINY)
    lr = checked_number("lr", lr, at_least=TINY)
    left, values, right, stretch = _modes(problem)
    if len(values) == 0:
        raise ValueError("the target has rank 0: there is no mode to follow")
    return SaxeSolution(left, values, right, init_scale, lr * problem.scale * stretch)


def _modes(problem: LeastSquares) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the solution's U, s, V and the α with X Xᵀ V = α V, without which modes mix."""
    if problem.runs is not None:
        raise ValueError(f"modes are those of one problem, this one holds {problem.runs} runs")
    problem = problem.to(torch.float64)
    left, values, right = problem.factors()
    if problem.inputs is None or len(values) == 0:
        return left, values, right, 1.0
    seen = problem.inputs @ (problem.inputs.mT @ right)
    stretch = float((right * seen).sum()) / len(values)
    violation = float((seen / stretch - right).abs().max())
    if violation > TOLERANCE:
        off = f"X Xᵀ V/α departs from V by {violation:.1e}"
        raise ValueError(f"inputs are not white on the rows of Φ ({off}); precondition them with lowdyn.linalg.whiten")
    return left, values / stretch, right, stretch
