"""What every problem says of itself: its objective over end-to-end matrices and the derivative that is pulled back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lowdyn.networks import product_of


class Problem(ABC):
    """An objective ½ s ‖residual‖² + constant over matrices M (…, d_y, d_x), the residual linear in the outputs M X.

    ``scale`` is s. ``inputs`` is X, or None for the identity.
    """

    scale: float
    inputs: Tensor | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape (d_y, d_x) of the end-to-end matrix."""

    @property
    @abstractmethod
    def runs(self) -> int | None:
        """Number of problems side by side; None when there is one, which every run then shares."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Precision of the data."""

    @abstractmethod
    def residual(self, outputs: Tensor) -> Tensor:
        """Return what the objective squares, at the outputs M X."""

    @abstractmethod
    def loss_of(self, residual: Tensor) -> Tensor:
        """Return the objective from a residual; one number, or one per run."""

    def pull_back(self, residual: Tensor) -> Tensor:
        """Return the derivative of the *sum* objective with respect to the outputs M X (…, d_y, N)."""
        return residual

    @abstractmethod
    def surrogate(self) -> Any:
        """Return the matrix whose leading singular vectors are those of the solution, or estimate them."""

    @abstractmethod
    def curvature(self) -> tuple[float, float]:
        """Return the largest singular value of the solution and λ, of the largest curvature s λ L σ^(2−2/L) there."""

    @abstractmethod
    def same_as(self, other: Problem) -> bool:
        """Return whether ``other`` is this very objective, number by number."""

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Self:
        """Return this problem with its data in ``dtype`` on ``device``."""

    @abstractmethod
    def select(self, runs: Tensor) -> Self:
        """Return the problems of some ``runs`` (indices); data that all runs share stays shared."""

    def condensed(self) -> Problem:
        """Return the same objective with fewer inputs, where there is such a form."""
        return self

    def loss(self, end_to_end: Any) -> Tensor:
        """Return the objective at the matrix M (…, d_y, d_x)."""
        return self.loss_of(self.residual(self.outputs(end_to_end)))

    def gradient(self, end_to_end: Any) -> Tensor:
        """Return the derivative of the objective with respect to M (…, d_y, d_x)."""
        pulled = self.scale * self.pull_back(self.residual(self.outputs(end_to_end)))
        return pulled if self.inputs is None else pulled @ self.inputs.mT

    def gradient_at(self, weights: Sequence[Tensor]) -> Any:
        """Return the derivative with respect to the product W_L … W_1, at that product."""
        return self.gradient(product_of(weights))

    def outputs(self, end_to_end: Any) -> Tensor:
        """Return M X; ValueError when M has another shape than the problem."""
        if not isinstance(end_to_end, Tensor):
            end_to_end = torch.as_tensor(end_to_end, dtype=self.dtype)
        if tuple(end_to_end.shape[-2:]) != self.shape:
            raise ValueError(f"this problem is about matrices of shape {self.shape}, got {tuple(end_to_end.shape)}")
        return end_to_end if self.inputs is None else end_to_end @ self.inputs
