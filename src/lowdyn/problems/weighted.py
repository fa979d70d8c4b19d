"""Products with a residual on the observed entries, each of which has a weight; compiled.

For entries that all count alike :mod:`lowdyn.problems.observed` does the same, in shares of rows and tiles of columns.
Weights are rare, and would cost that pass a load and a multiplication for every entry: they have one of their own here,
plain, by one thread.

numba is imported with this module, which is therefore imported where products are needed and nowhere else.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from lowdyn.problems.entries import Array, Entries, with_values
from lowdyn.problems.lanes import LANES, add_scaled, at, dot, load, store, zeros_like
from lowdyn.problems.observed import WIDE, observed_residual


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _weighted_pass(starts, indices, values, weights, mine, other, gradient, other_gradient, squares, blocks):
    """Fill both gradients, and ``squares`` row by row."""
    other_gradient[:] = 0
    for row in range(len(starts) - 1):
        own = load(mine, row, blocks)
        total = zeros_like(own)
        square = 0.0
        for place in range(starts[row], starts[row + 1]):
            column = at(indices, place)
            theirs = load(other, column, blocks)
            residual = dot(own, theirs) - at(values, place)
            weighted = at(weights, place) * residual
            square += weighted * residual
            total = add_scaled(total, weighted, theirs)
            store(add_scaled(load(other_gradient, column, blocks), weighted, own), other_gradient, column)
        store(total, gradient, row)
        squares[row] = square


class WeightedProducts:
    """Room for A and B and for the products of their residual R = Ω ⊙ (A B − Y), weighted: W ⊙ R.

    ``weights`` (entries,) are in the order of ``entries.by_row``. Fill ``left`` A (m, k) and ``right`` B (k, n) in
    place, ``compute()``, read ``left_gradient`` (W ⊙ R) Bᵀ (m, k) and ``right_gradient`` Aᵀ (W ⊙ R) (k, n): views of
    arrays whose columns are padded with zeros to a multiple of LANES.
    """

    def __init__(self, entries: Entries, weights: Array, rank: int) -> None:
        self.entries, self.weights = entries, weights
        padded = -(-rank // LANES) * LANES
        self.blocks, self.wide = (0,) * (padded // LANES), padded > WIDE
        # left, right, and their gradients; torch aligns to cache lines, numpy does not
        arrays = [torch.zeros(size, padded, dtype=entries.torch_dtype) for size in 2 * entries.shape]
        self.arrays = [one.numpy() for one in arrays]
        self.left, right, self.left_gradient, right_gradient = (one[:, :rank] for one in arrays)
        self.right, self.right_gradient = right.mT, right_gradient.mT
        self.squares = np.zeros(entries.shape[0])

    def compute(self) -> float:
        """Return ½ Σ w_ij r_ij²; fill both gradients."""
        half = self.entries.by_row
        if self.wide:  # rows leave the registers, and scipy is as quick
            residual = observed_residual(self.entries, self.left, self.right).data
            weighted = with_values(half, self.weights * residual)
            self.arrays[2][:], self.arrays[3][:] = weighted @ self.arrays[1], weighted.T @ self.arrays[0]
            return 0.5 * float(np.sum(weighted.data * residual, dtype=np.float64))
        _weighted_pass(half.indptr, half.indices, half.data, self.weights, *self.arrays, self.squares, self.blocks)
        return 0.5 * float(self.squares.sum())
