"""Products with a residual that lives on the observed entries, compiled: a matrix of the full shape is never formed.

For M = A B with A (m, k) and B (k, n), kept as A and Bᵀ row by row, one pass over the entries of a row of the matrix

    r_ij = a_i · b_j − y_ij        g_i = Σ_j r_ij b_j        s_i = Σ_j r_ij²

gives a row of R Bᵀ and its share of ½‖R‖²; the same pass over the transpose gives Rᵀ A, the residual computed again,
which is cheaper than fetching it in the other order. Every row is summed by one thread in the order of its entries,
so that results are the same bit by bit for any number of threads.

numba is imported with this module, which is therefore imported where products are needed and nowhere else.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from lowdyn.problems.entries import Entries, with_values
from lowdyn.problems.lanes import LANES, add_scaled, dot, load, store, zeros_like

Array = NDArray[np.floating]
SHARES = 32  # parts of about equally many entries that threads take in turn
PARALLEL = 400_000  # multiply-adds of a pass below which a second thread costs more than it brings


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _row_pass(start, stop, indices, values, row, mine, other, gradient, blocks):
    own = load(mine, row, blocks)
    total = zeros_like(own)
    squares = 0.0
    for place in range(start, stop):
        theirs = load(other, indices[place], blocks)
        residual = dot(own, theirs) - values[place]
        squares += residual * residual
        total = add_scaled(total, residual, theirs)
    store(total, gradient, row)
    return squares


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _pass(shares, starts, indices, values, mine, other, gradient, squares, blocks):
    for row in range(shares[0], shares[-1]):
        squares[row] = _row_pass(starts[row], starts[row + 1], indices, values, row, mine, other, gradient, blocks)


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _parallel_pass(shares, starts, indices, values, mine, other, gradient, squares, blocks):
    for share in numba.prange(len(shares) - 1):
        for row in range(shares[share], shares[share + 1]):
            squares[row] = _row_pass(starts[row], starts[row + 1], indices, values, row, mine, other, gradient, blocks)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _residuals(starts, indices, values, mine, other, out):
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1]):
            out[place] = np.dot(mine[row], other[indices[place]]) - values[place]


class ObservedProducts:
    """Room for A and B and for the products of their residual R = Ω ⊙ (A B − Y) on ``entries``.

    Fill ``left`` A (m, k) and ``right`` B (k, n) in place, ``compute()``, read ``left_gradient`` R Bᵀ (m, k) and
    ``right_gradient`` Aᵀ R (k, n): all four are views of arrays whose columns are padded to a multiple of 8.
    """

    def __init__(self, entries: Entries, rank: int) -> None:
        self.entries = entries
        blocks = -(-rank // LANES)
        self.blocks = (0,) * blocks
        self.parallel = entries.count * blocks * LANES >= PARALLEL
        self.halves = [
            _Half(half, np.zeros((half.shape[0], blocks * LANES), dtype=entries.dtype))
            for half in (entries.by_row, entries.by_column)
        ]
        self.left, self.left_gradient = self.halves[0].views(rank)
        right, right_gradient = self.halves[1].views(rank)
        self.right, self.right_gradient = right.mT, right_gradient.mT

    def compute(self, *, left: bool = True, right: bool = True) -> float:
        """Return ½‖R‖²; fill ``left_gradient`` and ``right_gradient``, or only those asked for."""
        rows, columns = self.halves
        run = _parallel_pass if self.parallel else _pass
        if right:
            run(*columns.pattern, columns.factor, rows.factor, columns.gradient, columns.squares, self.blocks)
        if left or not right:
            run(*rows.pattern, rows.factor, columns.factor, rows.gradient, rows.squares, self.blocks)
            return 0.5 * float(rows.squares.sum())
        return 0.5 * float(columns.squares.sum())


class _Half:
    """The entries seen from one side, the factor of that side and its gradient."""

    def __init__(self, half: sparse.csr_array, factor: Array) -> None:
        cuts = np.searchsorted(half.indptr, np.linspace(0, len(half.data), SHARES + 1))
        cuts[0], cuts[-1] = 0, half.shape[0]
        self.pattern = (cuts, half.indptr, half.indices, half.data)
        self.factor, self.gradient = factor, np.zeros_like(factor)
        self.squares = np.zeros(half.shape[0])

    def views(self, rank: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.factor)[:, :rank], torch.from_numpy(self.gradient)[:, :rank]


def observed_residual(entries: Entries, left: Tensor, right: Tensor) -> sparse.csr_array:
    """Return R = Ω ⊙ (A B − Y) for ``left`` A (m, k) and ``right`` B (k, n), in CSR form."""
    half = entries.by_row
    values = np.empty_like(half.data)
    factors = (np.ascontiguousarray(factor.numpy(), dtype=entries.dtype) for factor in (left, right.mT))
    _residuals(half.indptr, half.indices, half.data, *factors, values)
    return with_values(half, values)
