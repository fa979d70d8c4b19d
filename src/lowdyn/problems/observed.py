"""Products with a residual that lives on the observed entries, compiled: a matrix of the full shape is never formed.

For M = A B with A (m, k) and B (k, n), both kept row by row as A and Bᵀ, one pass over the entries, with

    r_ij = a_i · b_j − y_ij        (R Bᵀ)_i += r_ij b_j        (Rᵀ A)_j += r_ij a_i        ‖R‖² += r_ij²

gives everything a step needs. Rows are cut into shares of about equally many entries. A share adds what its rows give
to R Bᵀ in registers, and what they give to Rᵀ A in room of its own; the shares' sums are added in their order. How many
shares there are depends on the entries and not on the threads, so that results are the same bit by bit for any number
of threads, without atomics. The longer side gives the rows, since the room is that of the other.

Where a row has many entries a share goes through it in tiles of columns, for each of which b_j and the room stay in the
first-level cache: entries are kept a second time, in that order, since jumping from row to row costs what tiles save,
and with gaps, so that four at a time they come out even.

numba is imported with this module, which is therefore imported where products are needed and nowhere else.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from lowdyn.problems.entries import Entries, with_values
from lowdyn.problems.lanes import LANES, add_scaled, at, dot, dots, load, number, numbers, store, zeros_like

Array = NDArray[np.floating]
SHARES = 8  # at most, so that their room stays in the caches
TILE = 40_960  # bytes of a tile's b_j and room; a first-level cache has 48 KiB or more where this was measured
FULL = 16  # entries of a row in a tile below which tiles cost more than they save
WIDE = 128  # columns from which rows leave the registers and one compiled form per width is not worth its compilation
PARALLEL = 1_000_000  # multiply-adds of a pass below which a second thread costs more than it brings


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _share(first, last, starts, indices, values, mine, other, gradient, squares, both, room, blocks):
    """Pass over the entries of some rows, tile by tile, LANES at a time and the rest one by one.

    One function, since a call costs much of what the few entries of a row in a tile do.
    """
    room[:] = 0
    squares[first:last] = 0
    tiles = (len(starts) - 1) // len(squares)
    piece = first * tiles
    for tile in range(tiles):
        for row in range(first, last):
            own = load(mine, row, blocks)
            total = load(gradient, row, blocks) if tile else zeros_like(own)
            square = 0.0
            begin, end = starts[piece], starts[piece + 1]
            singles = begin + (end - begin) // LANES * LANES
            for place in range(begin, singles, LANES):
                columns = at(indices, place), at(indices, place + 1), at(indices, place + 2), at(indices, place + 3)
                a, b = load(other, columns[0], blocks), load(other, columns[1], blocks)
                c, d = load(other, columns[2], blocks), load(other, columns[3], blocks)
                residuals = add_scaled(dots(own, a, b, c, d), -1, numbers(values, place))
                square += dot(residuals, residuals)
                # From the registers, before anything is stored: after that b_j would have to be read again.
                total = add_scaled(add_scaled(total, number(residuals, 0), a), number(residuals, 1), b)
                total = add_scaled(add_scaled(total, number(residuals, 2), c), number(residuals, 3), d)
                if both:
                    for lane in range(LANES):
                        column = at(indices, place + lane)
                        store(add_scaled(load(room, column, blocks), number(residuals, lane), own), room, column)
            for place in range(singles, end):
                column = at(indices, place)
                theirs = load(other, column, blocks)
                residual = dot(own, theirs) - at(values, place)
                square += residual * residual
                total = add_scaled(total, residual, theirs)
                if both:
                    store(add_scaled(load(room, column, blocks), residual, own), room, column)
            store(total, gradient, row)
            squares[row] += square
            piece += 1


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
def _tile(cuts, starts, indices, values, width, new_starts, new_indices, new_values):
    """Put entries in the order share, tile of ``width`` columns, row, and begin every piece at a multiple of LANES.

    ``new_starts`` comes as zeros; what is left over of the other two stays as it comes.
    """
    tiles = (len(new_starts) - 1) // (len(starts) - 1)
    for filling in range(2):  # first to count, then to fill
        for share in range(len(cuts) - 1):
            first, rows = cuts[share], cuts[share + 1] - cuts[share]
            for row in range(rows):
                piece, end, free = first * tiles + row, width, 0
                if filling:
                    free = new_starts[piece]
                for place in range(starts[first + row], starts[first + row + 1]):
                    while indices[place] >= end:
                        piece, end = piece + rows, end + width
                        if filling:
                            free = new_starts[piece]
                    if filling:
                        new_indices[free], new_values[free] = indices[place], values[place]
                        free += 1
                    else:
                        new_starts[piece + 1] += 1
        if not filling:
            for piece in range(1, len(new_starts)):
                new_starts[piece] = new_starts[piece - 1] + -(-new_starts[piece] // LANES) * LANES


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
        spare = 0 if self.wide else 1  # a row of zeros, for the gaps of tiles
        factors = [torch.zeros(size + spare, padded, dtype=entries.torch_dtype) for size in entries.shape]
        gradients = [torch.zeros(size, padded, dtype=entries.torch_dtype) for size in entries.shape]
        self.left, self.right = (one[:size, :rank] for one, size in zip(factors, entries.shape, strict=True))
        self.left_gradient, self.right_gradient = (gradient[:, :rank] for gradient in gradients)
        self.right, self.right_gradient = self.right.mT, self.right_gradient.mT
        self.factors, self.gradients = [f.numpy() for f in factors], [g.numpy() for g in gradients]
        self.plans: dict[tuple[bool, bool], _Plan] = {}

    def compute(self, *, left: bool = True, right: bool = True) -> float:
        """Return ½‖R‖²; fill ``left_gradient`` and ``right_gradient`` where asked for, else leave anything there."""
        if self.wide:
            return self._compute_wide(left=left, right=right)
        both = left and right
        rows, columns = self.entries.shape
        transposed = right and (columns > rows or not left)
        if (transposed, both) not in self.plans:
            self.plans[transposed, both] = _Plan(self.entries, transposed, both, self.blocks)
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

    def __init__(self, entries: Entries, transposed: bool, both: bool, blocks: tuple[int, ...]) -> None:
        half = entries.by_column if transposed else entries.by_row
        rows, columns = half.shape
        # Sixteen entries for every place in the room, to make its clearing and summing cheap.
        shares = int(np.clip(entries.count // (16 * columns), 1, SHARES)) if both else SHARES
        width = TILE // (2 * LANES * len(blocks) * half.data.itemsize)
        self.pattern = _pattern(entries, transposed, shares, width)
        self.squares = np.zeros(rows)
        room = (columns + 1 if both else 0, LANES * len(blocks))
        # torch aligns to cache lines, numpy does not
        self.rooms = torch.empty(shares, *room, dtype=entries.torch_dtype).numpy()


def _pattern(entries: Entries, transposed: bool, shares: int, width: int) -> tuple[NDArray[Any], ...]:
    """Return where shares begin, where the pieces of rows begin, indices and values; in tiles where rows are full."""
    half = entries.by_column if transposed else entries.by_row
    rows, columns = half.shape
    tiles = -(-columns // width)
    key = (transposed, shares, width)
    if key in entries.tiled:
        return entries.tiled[key]
    cuts = np.searchsorted(half.indptr, np.linspace(0, entries.count, shares + 1))
    cuts[0], cuts[-1] = 0, rows
    if tiles == 1 or entries.count < FULL * tiles * rows:
        return cuts, half.indptr, half.indices, half.data
    starts = np.zeros(rows * tiles + 1, dtype=half.indptr.dtype)
    places = entries.count + (LANES - 1) * rows * tiles  # at most; gaps hold a zero in the spare column
    indices, values = np.full(places, columns, dtype=half.indices.dtype), np.zeros(places, dtype=half.data.dtype)
    pattern = (cuts, starts, indices, values)
    _tile(cuts, half.indptr, half.indices, half.data, width, *pattern[1:])
    entries.tiled[key] = pattern
    return pattern


def observed_residual(entries: Entries, left: Tensor, right: Tensor) -> sparse.csr_array:
    """Return R = Ω ⊙ (A B − Y) for ``left`` A (m, k) and ``right`` B (k, n), in CSR form."""
    half = entries.by_row
    values = np.empty_like(half.data)
    factors = (np.ascontiguousarray(factor.numpy(), dtype=entries.dtype) for factor in (left, right.mT))
    _residuals(half.indptr, half.indices, half.data, *factors, values)
    return with_values(half, values)
