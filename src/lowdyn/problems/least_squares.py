"""Least squares in the end-to-end matrix M: ½ s ‖M X − Y‖²_F, and what descent needs to know of it."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from lowdyn.arguments import checked_choice, checked_matrix
from lowdyn.linalg import low_rank_factors, spectral_norm
from lowdyn.problems.problem import Problem


class LeastSquares(Problem):
    """The objective ½ s ‖M X − Y‖²_F + constant, with s = 1 ("sum") or 1/number of entries of Y ("mean").

    ``inputs`` is X (…, d_x, N), or None for the identity; ``targets`` is Y (…, d_y, N). A leading dimension
    holds one problem per run. Use :class:`~lowdyn.problems.Factorization` or
    :class:`~lowdyn.problems.Regression`.
    """

    def __init__(self, inputs: Tensor | None, targets: Tensor, scale: float, constant: Tensor | None = None) -> None:
        self.inputs = inputs
        self.targets = targets
        self.scale = scale
        self.constant = torch.zeros((), dtype=targets.dtype) if constant is None else constant

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_y, d_x) of the end-to-end matrix."""
        columns = self.targets if self.inputs is None else self.inputs.mT
        return self.targets.shape[-2], columns.shape[-1]

    @property
    def runs(self) -> int | None:
        """Number of problems side by side; None when there is one, which every run then shares."""
        sizes = {part.shape[0] for part in (self.inputs, self.targets) if part is not None and part.ndim == 3}
        return max(sizes) if sizes else None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the data."""
        return self.targets.dtype

    def residual(self, outputs: Tensor) -> Tensor:
        """Return outputs − Y: the derivative of the *sum* objective with respect to the outputs M X."""
        return outputs - self.targets

    def loss_of(self, residual: Tensor) -> Tensor:
        """Return the objective from a residual; one number, or one per run."""
        return 0.5 * self.scale * residual.square().sum(dim=(-2, -1)) + self.constant

    @property
    def correlation(self) -> Tensor:
        """Φ = Y Xᵀ (…, d_y, d_x), all that whitened dynamics sees of the data (theory §1)."""
        return self.targets if self.inputs is None else self.targets @ self.inputs.mT

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the singular value decomposition of Φ up to its numerical rank: U_P (d_y, r), S (r,), V_P (d_x, r)."""
        return low_rank_factors(self.correlation)

    def surrogate(self) -> Tensor:
        """Return Φ (…, d_y, d_x), which whitened dynamics learns."""
        return self.correlation

    def curvature(self) -> tuple[float, float]:
        """Return σ_1 of the solution and λ_1(X Xᵀ), the largest over all runs."""
        return spectral_norm(self.solution()), 1.0 if self.inputs is None else spectral_norm(self.inputs) ** 2

    def same_as(self, other: Problem) -> bool:
        """Return whether ``other`` is this very objective, number by number."""
        if self is other:
            return True
        if not isinstance(other, LeastSquares):
            return False
        pairs = ((self.inputs, other.inputs), (self.targets, other.targets))
        return self.scale == other.scale and all(
            one is two or (one is not None and two is not None and torch.equal(one, two)) for one, two in pairs
        )

    def solution(self) -> Tensor:
        """Return the minimiser of smallest norm, Y X⁺ (…, d_y, d_x)."""
        return self.targets if self.inputs is None else self.targets @ torch.linalg.pinv(self.inputs)

    def minimum(self) -> Tensor:
        """Return the smallest value that the objective takes over all matrices."""
        return self.loss(self.solution())

    def condensed(self) -> LeastSquares:
        """Return the same objective of M with no more than d_x columns.

        From the LQ factorization X = T Qᵀ: ‖M X − Y‖² = ‖M T − Y Q‖² + ‖Y − Y Q Qᵀ‖². Nothing is squared, so no
        digit is lost as with the Gram matrix X Xᵀ. With N ≤ d_x, or no inputs, it is this problem itself.
        """
        if self.inputs is None or self.inputs.shape[-1] <= self.inputs.shape[-2]:
            return self
        q, r = torch.linalg.qr(self.inputs.mT)
        targets = self.targets @ q
        rest = self.loss_of(self.targets - targets @ q.mT)
        return LeastSquares(r.mT.contiguous(), targets, self.scale, rest)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Self:
        """Return this problem with its data in ``dtype`` on ``device``."""
        return self._like(
            None if self.inputs is None else self.inputs.to(device, dtype),
            self.targets.to(device, dtype),
            self.constant.to(device, dtype),
        )

    def select(self, runs: Tensor) -> Self:
        """Return the problems of some ``runs`` (indices); data that all runs share stays shared."""
        inputs = self.inputs
        return self._like(
            inputs[runs] if inputs is not None and inputs.ndim == 3 else inputs,
            self.targets[runs] if self.targets.ndim == 3 else self.targets,
            self.constant[runs] if self.constant.ndim == 1 else self.constant,
        )

    def _like(self, inputs: Tensor | None, targets: Tensor, constant: Tensor) -> Self:
        copy = self.__class__.__new__(self.__class__)
        LeastSquares.__init__(copy, inputs, targets, self.scale, constant)
        return copy


def checked_scale(reduction: str, targets: Tensor) -> float:
    """Return the factor of ½‖residual‖²: 1 for "sum", one over the entries of one target for "mean"."""
    checked_choice("reduction", reduction, ("mean", "sum"))
    return 1.0 if reduction == "sum" else 1.0 / (targets.shape[-2] * targets.shape[-1])


def checked_data(name: str, value: Any) -> Tensor:
    """Return ``value`` as a finite tensor (rows, columns) or (runs, rows, columns)."""
    data = checked_matrix(name, value)
    if data.ndim > 3:
        raise ValueError(f"{name} must be (rows, columns) or (runs, rows, columns), got {tuple(data.shape)}")
    return data
