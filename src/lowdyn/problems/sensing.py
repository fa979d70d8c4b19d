"""Matrix sensing: linear measurements ⟨A_i, W_L … W_1⟩ = y_i."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from lowdyn.arguments import checked_choice, checked_matrix
from lowdyn.linalg import spectral_norm
from lowdyn.problems.problem import Problem


class Sensing(Problem):
    """½ sum (or mean over measurements) of the squares of ⟨A_i, W_{L:1}⟩ − y_i.

    ``matrices`` is (N, m, n), the A_i; ``measurements`` is (N,), or (runs, N) for targets side by side under the same
    A_i. A step passes twice over the A_i as a matrix (N, m n), 2 N m n multiply-adds, whatever the network. Where the
    entries of A_i have mean 0 and variance v, E A*A = N v I: Kwon et al. 2024 draw N(0, 1)/N with the sum, so that a
    rate η there is a step η/N on ½‖W_{L:1} − target‖²_F.

    ValueError or TypeError for sizes that do not fit, nothing measured, NaN or infinity.

    >>> problem = Sensing(torch.eye(4, dtype=torch.float64).reshape(4, 2, 2), [1.0, 0.0, 0.0, 2.0])
    >>> problem.loss([[0.0, 0.0], [0.0, 0.0]]).item(), problem.surrogate().tolist()
    (2.5, [[1.0, 0.0], [0.0, 2.0]])
    """

    def __init__(self, matrices: Any, measurements: Any, reduction: str = "sum") -> None:
        matrices = checked_matrix("matrices", matrices)
        if matrices.ndim != 3:
            raise ValueError(f"matrices must be (N, rows, columns), one per measurement, got {tuple(matrices.shape)}")
        measured = torch.as_tensor(measurements).detach()
        if measured.ndim not in (1, 2) or measured.shape[-1] != len(matrices):
            raise ValueError(
                f"measurements must be ({len(matrices)},) or (runs, {len(matrices)}), one number per matrix, got "
                f"{tuple(measured.shape)}"
            )
        self.measurements = checked_matrix("measurements", measured.reshape(-1, len(matrices)))
        dtype = torch.promote_types(matrices.dtype, self.measurements.dtype)
        self.matrices = matrices.to(dtype)
        self.measurements = self.measurements.to(self.matrices).reshape(measured.shape)
        checked_choice("reduction", reduction, ("mean", "sum"))
        self.scale = 1.0 if reduction == "sum" else 1.0 / len(matrices)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the end-to-end matrix."""
        return self.matrices.shape[1], self.matrices.shape[2]

    @property
    def runs(self) -> int | None:
        """Number of targets side by side; None when there is one."""
        return len(self.measurements) if self.measurements.ndim == 2 else None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the data."""
        return self.matrices.dtype

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one pass over the A_i."""
        return self.matrices.numel() * (self.runs or 1)

    def residual(self, outputs: Tensor) -> Tensor:
        """Return ⟨A_i, M⟩ − y_i (…, N)."""
        return outputs.flatten(-2) @ self.matrices.flatten(1).mT - self.measurements

    def loss_of(self, residual: Tensor) -> Tensor:
        """Return the objective from a residual; one number, or one per run."""
        return 0.5 * self.scale * residual.square().sum(dim=-1)

    def pull_back(self, residual: Tensor) -> Tensor:
        """Return A*(residual) = Σ_i residual_i A_i (…, m, n)."""
        return (residual @ self.matrices.flatten(1)).unflatten(-1, self.shape)

    def surrogate(self) -> Tensor:
        """Return A*(y)/c with c = ‖A‖²_F/(m n), whose mean over Gaussian A_i is the target (…, m, n)."""
        return self.pull_back(self.measurements) / self._stretch

    @property
    def _stretch(self) -> float:
        """The c for which A*A is about c I."""
        return float(self.matrices.square().sum(dtype=torch.float64)) / (self.shape[0] * self.shape[1])

    def curvature(self) -> tuple[float, float]:
        """Return σ_1 of the surrogate and c: A*A is about c I on matrices of low rank."""
        return spectral_norm(self.surrogate()), self._stretch

    def same_as(self, other: Problem) -> bool:
        """Return whether ``other`` measures the same numbers by the same matrices."""
        return self is other or (
            isinstance(other, Sensing)
            and self.scale == other.scale
            and torch.equal(self.measurements, other.measurements)
            and torch.equal(self.matrices, other.matrices)
        )

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Self:
        """Return this problem with its data in ``dtype`` on ``device``."""
        return self._like(self.matrices.to(device, dtype), self.measurements.to(device, dtype))

    def select(self, runs: Tensor) -> Self:
        """Return the problems of some ``runs`` (indices)."""
        return self if self.runs is None else self._like(self.matrices, self.measurements[runs])

    def _like(self, matrices: Tensor, measurements: Tensor) -> Self:
        copy = self.__class__.__new__(self.__class__)
        copy.matrices, copy.measurements, copy.scale = matrices, measurements, self.scale
        return copy
