"""Descent on a product of two halves: what only their narrow inner dimension k has to see of the full matrix.

With M = A B, A = W_L … W_{s+1} (m, k) and B = W_s … W_1 (k, n), a problem gives its loss and the derivatives R Bᵀ and
Aᵀ R, and each half carries its own to its factors, as the chain it is. Where the problem is a completion on a CPU only
observed entries are touched: O((|Ω| + m k + n k) k) a step, nothing of size m n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from lowdyn.dynamics.chain import Chain, Loop, Part
from lowdyn.dynamics.rule import Descent, ScaledDescent
from lowdyn.networks import narrowest_split
from lowdyn.problems import Completion, Problem


class Products(Protocol):
    """Room for A and B, and the derivatives of the loss, over the problem's scale, with respect to each."""

    left: Tensor
    right: Tensor
    left_gradient: Tensor
    right_gradient: Tensor
    multiply_adds: int
    """Multiply-adds that torch's threads share."""

    def compute(self, *, left: bool, right: bool) -> float | Tensor:
        """Return the loss over the problem's scale and fill the gradients that are asked for, if any."""
        ...


class FullProducts:
    """The products by way of the full residual, for every problem, for runs side by side and on every device."""

    def __init__(self, problem: Problem, left: Tensor, right: Tensor) -> None:
        self.problem, self.left, self.right = problem, torch.empty_like(left), torch.empty_like(right)
        self.left_gradient, self.right_gradient = self.left, self.right
        self.multiply_adds = max(left.numel() * right.shape[-1], problem.multiply_adds)

    def compute(self, *, left: bool, right: bool) -> Tensor:
        """Return the loss over the problem's scale and form the gradients that are asked for."""
        residual = self.problem.residual(self.problem.outputs(self.left @ self.right))
        pulled, inputs = self.problem.pull_back(residual), self.problem.inputs
        pulled = pulled if inputs is None else pulled @ inputs.mT
        if left:
            self.left_gradient = pulled @ self.right.mT
        if right:
            self.right_gradient = self.left.mT @ pulled
        return self.problem.loss_of(residual) / self.problem.scale


def splits(part: Part) -> bool:
    """Return whether :class:`SplitLoop` is the way for ``part``: a completion that a narrow product solves on a CPU."""
    problem, weights = part.problem, part.weights
    if not isinstance(problem, Completion) or weights[0].ndim == 3 or weights[0].device.type != "cpu":
        return False
    if len(weights) < 2 or any(part.rectified):
        return False
    narrow = min(weight.shape[-2] for weight in weights[:-1])
    # Entry by entry a wide product is slower than as a matrix: at 20 % observed from about an eighth of the sides on.
    return problem.targets is None or 8 * narrow <= min(problem.shape)


class SplitLoop(Loop):
    """The loop for one linear network, split at its narrowest inner dimension."""

    def __init__(self, part: Part, descent: Descent) -> None:
        super().__init__([part])
        self.part, self.descent, self.problem = part, descent, part.problem
        self.split = narrowest_split(part.weights)
        rates = descent.rates_of_factors(len(part.weights))
        halves = ((part.weights[self.split :], rates[self.split :]), (part.weights[: self.split], rates[: self.split]))
        self.left, self.right = (
            Chain(weights, replace(descent, factor_rates=own), part.problem.scale) for weights, own in halves
        )
        self._place()
        self.multiply_adds = max(part.multiply_adds for part in (self.left, self.right, self.products))

    def _place(self) -> None:
        self.products = self._products()
        self.left.place(self.products.left)
        self.right.place(self.products.right)
        self.known: Tensor | None = None  # loss of the present weights, while the gradients are theirs

    def _products(self) -> Products:
        left, right = self.left.forward(), self.right.forward()
        if not isinstance(self.problem, Completion) or left.ndim == 3 or left.device.type != "cpu":
            return FullProducts(self.problem, left, right)
        from lowdyn.problems.observed import ObservedProducts  # numba is slow to import

        return ObservedProducts(self.problem.entries, left.shape[-1])

    def loss(self, *, last: bool = False) -> Tensor:
        """Return the loss at the present weights, one or one per run still training; ``last``: no step follows."""
        if self.known is None:
            self.left.forward()
            self.right.forward()
            loss = self.products.compute(left=self.left.trains and not last, right=self.right.trains and not last)
            self.known = torch.as_tensor(self.problem.scale * loss, dtype=torch.float64)
        return self.known

    def advance(self, rates: Sequence[float | Tensor]) -> None:
        """Make one update per learning rate."""
        for rate in rates:
            self.loss()
            self.known = None
            products = self.products
            left, right = products.left_gradient, products.right_gradient
            if isinstance(self.descent, ScaledDescent):
                left, right = scaled_gradients(products.left, products.right, left, right)
            self.left.backward(left, rate)
            self.right.backward(right, rate)

    def write_back(self) -> None:
        """Bring the network up to date: the halves may hold copies in a layout of their own."""
        for whole, present in zip(self.part.weights, [*self.right.weights, *self.left.weights], strict=True):
            if self.active is not None:
                whole[self.active] = present
            elif whole.data_ptr() != present.data_ptr():
                whole.copy_(present)

    def _select(self, chosen: Tensor) -> None:
        self.problem = self.problem.select(chosen)
        self.left.select(chosen)
        self.right.select(chosen)
        self._place()


def scaled_gradients(left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor) -> tuple[Tensor, Tensor]:
    """Return G_A (B Bᵀ)⁻¹ and (Aᵀ A)⁻¹ G_B, the gradients of ScaledGD; ValueError where a Gram matrix is singular."""
    over_left = _solved(right @ right.mT, of_left.mT, "W_1 W_1ᵀ").mT
    return over_left, _solved(left.mT @ left, of_right, "W_2ᵀ W_2")


def _solved(gram: Tensor, columns: Tensor, name: str) -> Tensor:
    root, info = torch.linalg.cholesky_ex(gram)
    pivots = root.diagonal(dim1=-2, dim2=-1)
    # The pivots' ratio bounds the condition number from below; beyond 1/eps no digit of the solution is right.
    ratio = (pivots.amin(-1) / pivots.amax(-1)) ** 2
    singular = (info != 0) | (ratio < gram.shape[-1] * torch.finfo(gram.dtype).eps)
    if bool(singular.any()):
        where = "" if gram.ndim == 2 else f" in runs {torch.nonzero(singular)[:, 0].tolist()}"
        raise ValueError(
            f"the Gram matrix {name} is singular to rounding{where}, so scaled descent has no direction: start at full "
            "rank (a spectral start), with an inner dimension no larger than the rank of the solution"
        )
    return torch.cholesky_solve(columns, root)
