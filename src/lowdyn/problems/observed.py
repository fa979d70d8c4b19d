"""Products with a residual that lives on the observed entries, compiled: a matrix of the full shape is never formed.

For M = A B with A (m, k) and B (k, n), both kept row by row as A and Bᵀ, one pass over the entries, with

    r_ij = a_i · b_j − y_ij        (R Bᵀ)_i += r_ij b_j        (Rᵀ A)_j += r_ij a_i        ‖R‖² += r_ij²

gives everything a step needs. Rows are cut into shares of about equally many entries. A share adds what its rows give
to R Bᵀ in registers, and what they give to Rᵀ A in room of its own; the shares' sums are added in their order. How many
shares there are depends on the entries and not on the threads, so that results are the same bit by bit for any number
of threads, without atomics. The longer side gives the rows, since the room is that of the other.

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
SHARES = 8  # at most, so that their room stays in the caches
WIDE = 128  # columns from which rows leave the registers and one compiled form per width is not worth its compilation
PARALLEL = 1_000_000  # multiply-adds of a pass below which a second thread costs more than it brings


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _row(indices, values, row, mine, other, gradient, both, room, blocks):
    """Pass over the entries of one row; return its Σ r²."""
    own = load(mine, row, blocks)
    total = zeros_like(own)
    squares = 0.0
    for place in range(len(values)):
        column = indices[place]
        theirs = load(other, column, blocks)
        residual = dot(own, theirs) - values[place]
        squares += residual * residual
        total = add_scaled(total, residual, theirs)
        if both:
            store(add_scaled(load(room, column, blocks), residual, own), room, column)
    store(total, gradient, row)
    return squares


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _share(first, last, starts, indices, values, mine, other, gradient, squares, both, room, blocks):
    room[:] = 0
    for row in range(first, last):
        own = slice(starts[row], starts[row + 1])
        squares[row] = _row(indices[own], values[own], row, mine, other, gradient, both, room, blocks)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _sum_of_shares(row, rooms, other_gradient, blocks):
    total = load(rooms[0], row, blocks)
    for share in range(1, len(rooms)):
        total = add_scaled(total, 1, load(rooms[share], row, blocks))
    store(total, other_gradient, row)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _pass(cuts, starts, indices, values, mine, other, gradient, squares, both, rooms, other_gradient, blocks):
    """Fill ``gradient`` and ``squares`` row by row, and ``other_gradient`` if ``both``."""
    for share in range(len(rooms)):
        first, last, room = cuts[share], cuts[share + 1], rooms[share]
        _share(first, last, starts, indices, values, mine, other, gradient, squares, both, room, blocks)
    if both:
        for row in range(len(other_gradient)):
            _sum_of_shares(row, rooms, other_gradient, blocks)


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _parallel_pass(cuts, starts, indices, values, mine, other, gradient, squares, both, rooms, other_gradient, blocks):
    """The same with as many threads as numba has. (numba keeps compiled functions on disk by name, hence two.)"""
    for share in numba.prange(len(rooms)):
        first, last, room = cuts[share], cuts[share + 1], rooms[share]
        _share(first, last, starts, indices, values, mine, other, gradient, squares, both, room, blocks)
    if both:
        for row in numba.prange(len(other_gradient)):
            _sum_of_shares(row, rooms, other_gradient, blocks)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _residuals(starts, indices, values, mine, other, out):
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1]):
            out[place] = np.dot(mine[row], other[indices[place]]) - values[place]


class ObservedProducts:
    """Room for A and B and for the products of their residual R = Ω ⊙ (A B − Y) on ``entries``.

    Fill ``left`` A (m, k) and ``right`` B (k, n) in place, ``compute()``, read ``left_gradient`` R Bᵀ (m, k) and
    ``right_gradient`` Aᵀ R (k, n): views of arrays whose columns are padded with zeros to a multiple of LANES.
    """

    multiply_adds = 0  # none of them torch's

    def __init__(self, entries: Entries, rank: int) -> None:
        self.entries = entries
        padded = -(-rank // LANES) * LANES
        self.blocks = (0,) * (padded // LANES)
        self.wide = padded > WIDE
        self.parallel = entries.count * padded >= PARALLEL
        factors = [torch.zeros(size, padded, dtype=entries.torch_dtype) for size in entries.shape]
        gradients = [torch.zeros_like(factor) for factor in factors]
        self.left, self.left_gradient = factors[0][:, :rank], gradients[0][:, :rank]
        self.right, self.right_gradient = factors[1][:, :rank].mT, gradients[1][:, :rank].mT
        self.factors, self.gradients = [f.numpy() for f in factors], [g.numpy() for g in gradients]
        self.plans: dict[tuple[bool, bool], _Plan] = {}

    def compute(self, *, left: bool = True, right: bool = True) -> float:
        """Return ½‖R‖²; fill ``left_gradient`` and ``right_gradient``, or only the one asked for."""
        if self.wide:
            return self._compute_wide(left=left, right=right)
        both = left == right
        rows, columns = self.entries.shape
        transposed = columns > rows if both else right
        if (transposed, both) not in self.plans:
            half = self.entries.by_column if transposed else self.entries.by_row
            self.plans[transposed, both] = _Plan(half, both, self.blocks, self.entries.torch_dtype)
        plan, mine = self.plans[transposed, both], int(transposed)
        run = _parallel_pass if self.parallel else _pass
        threads = torch.get_num_threads()
        run(
            *plan.pattern,
            self.factors[mine],
            self.factors[1 - mine],
            self.gradients[mine],
            plan.squares,
            both,
            plan.rooms,
            self.gradients[1 - mine],
            self.blocks,
        )
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # numba and torch may share one OpenMP, whose number numba sets at its start
        return 0.5 * float(plan.squares.sum())

    def _compute_wide(self, *, left: bool, right: bool) -> float:
        """The same by scipy's sparse products, for factors too wide to hold their rows in registers."""
        half = self.entries.by_row
        residual = np.empty_like(half.data)
        _residuals(half.indptr, half.indices, half.data, *self.factors, residual)
        matrix = with_values(half, residual)
        if left:
            self.gradients[0][:] = matrix @ self.factors[1]
        if right:
            self.gradients[1][:] = matrix.T @ self.factors[0]
        return 0.5 * float(np.sum(residual**2, dtype=np.float64))


class _Plan:
    """The entries of one side's rows, cut into shares, and their room if they give ``both`` gradients."""

    def __init__(self, half: sparse.csr_array, both: bool, blocks: tuple[int, ...], torch_dtype: torch.dtype) -> None:
        entries, (rows, columns) = len(half.data), half.shape
        # Sixteen entries for every place in the room, to make its clearing and summing cheap.
        shares = int(np.clip(entries // (16 * columns), 1, SHARES)) if both else SHARES
        cuts = np.searchsorted(half.indptr, np.linspace(0, entries, shares + 1))
        cuts[0], cuts[-1] = 0, rows
        self.pattern = (cuts, half.indptr, half.indices, half.data)
        self.squares = np.zeros(rows)
        room = (columns if both else 0, LANES * len(blocks))
        self.rooms = torch.empty(
            shares, *room, dtype=torch_dtype
        ).numpy()  # torch aligns to cache lines, numpy does not


def observed_residual(entries: Entries, left: Tensor, right: Tensor) -> sparse.csr_array:
    """Return R = Ω ⊙ (A B − Y) for ``left`` A (m, k) and ``right`` B (k, n), in CSR form."""
    half = entries.by_row
    values = np.empty_like(half.data)
    factors = (np.ascontiguousarray(factor.numpy(), dtype=entries.dtype) for factor in (left, right.mT))
    _residuals(half.indptr, half.indices, half.data, *factors, values)
    return with_values(half, values)
