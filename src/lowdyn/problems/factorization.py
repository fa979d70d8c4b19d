"""Matrix factorization: W_L … W_1 = target, every entry seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowdyn.arguments import checked_count, checked_generator
from lowdyn.problems.least_squares import LeastSquares, checked_data, checked_scale


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
