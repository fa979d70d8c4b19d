"""Matrix factorization: W_L … W_1 = target, every entry seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdyn.arguments import checked_choice, checked_count, checked_generator, checked_matrix
from lowdyn.problems.least_squares import LeastSquares, checked_data, checked_scale
from lowdyn.problems.problem import Problem


class Factorization(LeastSquares):
    """½ mean (or sum) of the squares of W_{L:1} − target over all entries.

    ``target`` is (d_y, d_x), or (runs, d_y, d_x) for one target per run. The papers' code of Yaras et al.
    2023 uses the mean; a rate η there is a step η/(d_y d_x) on the sum.

    >>> problem = Factorization([[1.0, 0.0], [0.0, 0.0]])
    >>> problem.loss(torch.zeros(2, 2)).item(), problem.gradient(torch.zeros(2, 2, dtype=torch.float64))[0, 0].item()
    (0.125, -0.25)
    """

    def __init__(self, target: Any, reduction: str = "mean") -> None:
        target = checked_data("target", target)
        super().__init__(None, target, checked_scale(reduction, target))


class FactoredTarget(LeastSquares):
    """The factorization of U diag(S) Vᵀ, known by its factors: the target itself is formed only when asked for.

    ``left`` U (d_y, r) and ``right`` V (d_x, r) have orthonormal columns, ``values`` S (r,) are positive. The
    problem for widths at which no d x d array fits, see :func:`lowdyn.dynamics.sample_reduced_network`.
    ValueError when the columns are not orthonormal or sizes do not fit.

    >>> e = torch.eye(1000, dtype=torch.float64)[:, :2]
    >>> FactoredTarget(e, torch.tensor([3.0, 2.0]), e, reduction="sum").shape
    (1000, 1000)
    """

    def __init__(self, left: Any, values: Any, right: Any, reduction: str = "mean") -> None:
        self.left, self.right = checked_matrix("left", left), checked_matrix("right", right)
        self.values = torch.as_tensor(values).detach().to(self.left)
        self.right = self.right.to(self.left)
        rank = self.left.shape[1]
        if self.values.shape != (rank,) or self.right.shape[1] != rank or self.left.ndim != 2:
            raise ValueError(
                f"left {tuple(self.left.shape)}, values {tuple(self.values.shape)} and right "
                f"{tuple(self.right.shape)} must be (d_y, r), (r,) and (d_x, r)"
            )
        if not bool((self.values > 0).all()):
            raise ValueError("values must be positive; leave out directions of value 0")
        identity = torch.eye(rank).to(self.left)
        for name, basis in (("left", self.left), ("right", self.right)):
            violation = float((basis.mT @ basis - identity).abs().max())
            if violation > 1e3 * torch.finfo(basis.dtype).eps:
                raise ValueError(
                    f"columns of {name} are not orthonormal (by {violation:.1e}); take torch.linalg.qr first"
                )
        self.inputs = None
        entries = self.left.shape[0] * self.right.shape[0]
        self.scale = {"sum": 1.0, "mean": 1.0 / entries}[checked_choice("reduction", reduction, ("mean", "sum"))]
        self.constant = torch.zeros((), dtype=self.left.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_y, d_x) of the end-to-end matrix."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def targets(self) -> Tensor:  # type: ignore[override]
        """The target, formed anew."""
        return (self.left * self.values) @ self.right.mT

    @property
    def runs(self) -> None:
        """One problem."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the factors."""
        return self.left.dtype

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the factors it was made of."""
        return self.left, self.values, self.right

    def same_as(self, other: Problem) -> bool:
        """Return whether ``other`` is made of the same factors."""
        return self is other or (
            isinstance(other, FactoredTarget)
            and self.scale == other.scale
            and all(torch.equal(one, two) for one, two in zip(self.factors(), other.factors(), strict=True))
        )

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> LeastSquares:  # type: ignore[override]
        """Return the problem with its factors in ``dtype`` on ``device``."""
        copy = FactoredTarget.__new__(FactoredTarget)
        parts = (part.to(device, dtype) for part in (self.left, self.values, self.right, self.constant))
        copy.left, copy.values, copy.right, copy.constant = parts
        copy.inputs, copy.scale = None, self.scale
        return copy


def low_rank_target(
    rows: int,
    columns: int,
    *,
    rank: int,
    generator: torch.Generator,
    runs: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the best rank-``rank`` approximation of a standard Gaussian matrix, (rows, columns).

    Its singular values are near √rows + √columns and nearly equal, the targets of Yaras et al. 2023; a
    product of Gaussian factors has values near √(rows · columns) and diverges at their rates.

    >>> target = low_rank_target(6, 5, rank=2, generator=torch.Generator().manual_seed(0))
    >>> target.shape, int(torch.linalg.matrix_rank(target))
    (torch.Size([6, 5]), 2)
    """
    rank = checked_count("rank", rank, at_least=1)
    if rank > min(rows, columns):
        raise ValueError(f"rank {rank} exceeds the smaller side of a {rows} x {columns} matrix")
    batch = () if runs is None else (checked_count("runs", runs, at_least=1),)
    gaussian = torch.randn(*batch, rows, columns, generator=checked_generator(generator), dtype=torch.float64)
    u, values, vt = torch.linalg.svd(gaussian, full_matrices=False)
    return ((u[..., :rank] * values[..., None, :rank]) @ vt[..., :rank, :]).to(dtype)
