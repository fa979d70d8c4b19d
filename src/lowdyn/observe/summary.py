"""The spectrum of one matrix in a few numbers: its top, its bulk, and three kinds of rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdyn.arguments import checked_count, checked_matrix

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
ROWS = 4096  # of a tall matrix at a time in float64


@dataclass(frozen=True, eq=False)
class Summary:
    """What :func:`summarize` says of one matrix (out, in), float64.

    ``values`` (k,) are the largest singular values, descending, k = min(top, out, in). ``bulk`` (5,) are the
    minimum, the quartiles and the maximum of all the others, NaN when there are none. ``norm`` is ‖W‖_F;
    ``numerical_rank`` counts σ_i > max(out, in)·eps·σ_1, eps that of the weight's own type; ``stable_rank`` is
    ‖W‖_F²/σ_1²; ``effective_rank`` is exp(−Σ p_i ln p_i), p_i = σ_i/Σσ_j (Roy and Vetterli 2007). A matrix of
    zeros has rank 0 of every kind.
    """

    shape: tuple[int, int]
    values: Tensor
    bulk: Tensor
    norm: float
    numerical_rank: int
    stable_rank: float
    effective_rank: float


def summarize(matrix: Tensor, top: int = 16) -> Summary:
    """Return the :class:`Summary` of a ``matrix`` (out, in) of any floating type, by exact singular values.

    Computed in float64; a tall or wide matrix is first reduced to a triangle of its shorter side, a block of rows
    at a time, so that no float64 copy of it is made. ValueError for NaN, infinity or an empty matrix.

    >>> found = summarize(torch.diag(torch.tensor([4.0, 2.0, 2.0, 0.0])), top=1)
    >>> found.values.tolist(), found.numerical_rank, found.stable_rank, round(found.effective_rank, 3)
    ([4.0], 3, 1.5, 2.828)
    """
    checked_count("top", top)
    matrix = checked_matrix("matrix", matrix)
    if matrix.ndim != 2:
        raise ValueError(f"summarize takes one matrix (out, in), got shape {tuple(matrix.shape)}")
    rows, columns = matrix.shape
    values = singular_values(matrix)
    numerical, stable, effective = ranks(values, rows, columns, matrix.dtype)
    return Summary(
        shape=(rows, columns),
        values=values[:top],
        bulk=bulk_of(values, top),
        norm=float(length_of(values)),
        numerical_rank=int(numerical),
        stable_rank=float(stable),
        effective_rank=float(effective),
    )


def ranks(values: Tensor, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numerical, the stable and the effective rank (…) from all singular ``values`` (…, index).

    ``dtype`` is what the matrix was stored in: its eps decides which values are rounding.

    >>> [rank.item() for rank in ranks(torch.tensor([1.0, 1e-9]), 2, 2, torch.float32)[:2]]
    [1, 1.0]
    """
    largest = values[..., :1]
    scaled = values / torch.where(largest > 0, largest, 1.0)
    numerical = (scaled > max(rows, columns) * torch.finfo(dtype).eps).sum(dim=-1)
    total = scaled.sum(dim=-1, keepdim=True)
    shares = scaled / torch.where(total > 0, total, 1.0)
    effective = torch.exp(-torch.xlogy(shares, shares).sum(dim=-1))
    return numerical, scaled.square().sum(dim=-1), torch.where(largest[..., 0] > 0, effective, 0.0)


def length_of(values: Tensor) -> Tensor:
    """Return √Σ values² (…) over the last dimension, of values whose squares may leave the range of float64.

    >>> length_of(torch.tensor([3e-200, 4e-200], dtype=torch.float64)).item()
    5e-200
    """
    if not values.shape[-1]:
        return values.sum(dim=-1)
    largest = values.abs().amax(dim=-1, keepdim=True)
    return largest[..., 0] * (values / torch.where(largest > 0, largest, 1.0)).norm(dim=-1)


def rms_of(values: Tensor) -> Tensor:
    """Return their root mean square likewise; NaN where there are none."""
    return length_of(values) / values.shape[-1] ** 0.5 if values.shape[-1] else values.sum(dim=-1) + torch.nan


def bulk_of(values: Tensor, top: int) -> Tensor:
    """Return minimum, quartiles and maximum (…, 5) of the singular ``values`` (…, index) after the ``top`` first."""
    rest = values[..., top:]
    if not rest.shape[-1]:
        return values.new_full((*values.shape[:-1], len(QUANTILES)), torch.nan)
    return torch.quantile(rest, rest.new_tensor(QUANTILES), dim=-1).movedim(0, -1)


def singular_values(matrix: Tensor) -> Tensor:
    """Return all singular values of ``matrix`` (out, in), descending, float64, exact to eps·σ_1.

    >>> [round(value, 12) for value in singular_values(torch.ones(5000, 2)).tolist()]
    [100.0, 0.0]
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    if tall.shape[0] > 2 * tall.shape[1]:
        # Orthogonal reductions keep the singular values; a Gram matrix would lose those below 1e-8 of the largest.
        triangle = tall.new_zeros((0, tall.shape[1]), dtype=torch.float64)
        for block in torch.split(tall, ROWS):
            _, triangle = torch.linalg.qr(torch.cat([triangle, block.to(torch.float64)]), mode="r")
        tall = triangle
    return torch.linalg.svdvals(tall.to(torch.float64))
