"""The observed entries of a matrix, by rows and, where needed, by columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Entries:
    """Values at some places (i, j) of a matrix: ``by_row`` in canonical CSR form (sorted, nothing twice).

    A stored zero is an entry. Rows and columns may be empty.
    """

    by_row: sparse.csr_array

    @classmethod
    def from_sparse(cls, matrix: Any) -> Self:
        """Take the stored entries of any scipy sparse matrix.

        TypeError for what is not sparse or not real, ValueError for indices out of range, an entry stored twice (the
        first is named), NaN or infinity.
        """
        if not sparse.issparse(matrix):
            raise TypeError(f"expected a scipy sparse matrix, got {type(matrix).__name__}; a dense one needs a mask")
        if matrix.ndim != 2:
            raise ValueError(f"a sparse matrix of {matrix.ndim} dimensions; rows and columns are needed")
        if matrix.dtype.kind not in "biuf":
            raise TypeError(f"the entries must be real numbers, got {matrix.dtype}")
        if matrix.format not in ("coo", "csr", "csc"):
            matrix = matrix.tocoo()
        _check_indices(matrix)
        given, rows = matrix, matrix.tocsr(copy=True)  # of a coo matrix that adds up what is stored twice
        rows.sort_indices()
        if rows.nnz != given.nnz or _repeats(rows).any():
            raise ValueError(_twice(given))
        return cls._of(sparse.csr_array(rows))

    @classmethod
    def from_dense(cls, target: Array, mask: Array) -> Self:
        """Take the entries of ``target`` where ``mask`` is True."""
        starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
        return cls._of(sparse.csr_array((target[mask], np.nonzero(mask)[1], starts), shape=target.shape))

    @classmethod
    def _of(cls, rows: sparse.csr_array) -> Self:
        dtype = rows.dtype if rows.dtype in (np.float32, np.float64) else np.float64
        rows = rows.astype(dtype, copy=False)
        if not np.isfinite(rows.data).all():
            place = int(np.flatnonzero(~np.isfinite(rows.data))[0])
            row, column = _place(rows, place)
            raise ValueError(f"the entry at row {row}, column {column} is {rows.data[place]}; leave unknown ones out")
        return cls(_indexed(rows))

    @cached_property
    def by_column(self) -> sparse.csr_array:
        """The transpose in canonical CSR form."""
        return _indexed(self.by_row.T.tocsr())

    @cached_property
    def tiled(self) -> dict[tuple[bool, int, int], tuple[Array, ...]]:
        """The entries in other orders, which whoever needs them keeps here (:mod:`lowdyn.problems.observed`)."""
        return {}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.by_row.shape

    @property
    def count(self) -> int:
        """How many entries are observed."""
        return len(self.by_row.data)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.by_row.dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same, as torch names it."""
        return torch.float32 if self.dtype == np.float32 else torch.float64

    def astype(self, dtype: DTypeLike) -> Entries:
        """Return the entries in another precision; the pattern is shared."""
        if self.dtype == dtype:
            return self
        return Entries(with_values(self.by_row, self.by_row.data.astype(dtype)))

    def same_as(self, other: Entries) -> bool:
        """Return whether places and values agree, number by number."""
        one, two = self.by_row, other.by_row
        return one.shape == two.shape and all(
            np.array_equal(getattr(one, name), getattr(two, name)) for name in ("indptr", "indices", "data")
        )


def with_values(pattern: sparse.csr_array, values: Array) -> sparse.csr_array:
    """Return ``values`` in the places of ``pattern``, whose index arrays are shared."""
    out = sparse.csr_array(pattern.shape, dtype=values.dtype)
    out.data, out.indices, out.indptr = values, pattern.indices, pattern.indptr
    return out


def _indexed(half: sparse.csr_array) -> sparse.csr_array:
    """Give every pattern the same index types, so that one compiled form serves."""
    half.indices, half.indptr = half.indices.astype(np.int32, copy=False), half.indptr.astype(np.int64, copy=False)
    return half


def _check_indices(matrix: Any) -> None:
    """Look at every index before compiled code does."""
    rows, columns = matrix.shape
    if max(rows, columns) >= 2**31:
        raise ValueError(f"a matrix of shape {matrix.shape}: sides up to 2³¹ − 1 are supported")
    if matrix.format == "coo":
        pairs = [("row", matrix.row, rows), ("column", matrix.col, columns)]
    else:
        pairs = [("column", matrix.indices, columns) if matrix.format == "csr" else ("row", matrix.indices, rows)]
        starts = matrix.indptr
        if starts[0] != 0 or starts[-1] != len(matrix.indices) or (np.diff(starts) < 0).any():
            raise ValueError("the sparse matrix has an indptr that does not ascend from 0 to the number of indices")
    for name, indices, size in pairs:
        if len(indices) and (indices.min() < 0 or indices.max() >= size):
            place = int(np.flatnonzero((indices < 0) | (indices >= size))[0])
            raise ValueError(f"{name} index {indices[place]} (entry {place}) is outside 0 … {size - 1}")


def _repeats(rows: sparse.csr_array) -> NDArray[np.bool_]:
    """Mark entries that stand where the one before them stands."""
    same = np.zeros(rows.nnz, dtype=bool)
    same[1:] = rows.indices[1:] == rows.indices[:-1]
    starts = rows.indptr[:-1]
    same[starts[starts < rows.nnz]] = False
    return same


def _twice(matrix: Any) -> str:
    """Say which entry is the first to be stored a second time."""
    entries = matrix.tocoo()
    keys = entries.row.astype(np.int64) * matrix.shape[1] + entries.col
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    place = int(np.flatnonzero(first[index] != np.arange(len(keys)))[0])
    one, two = entries.data[first[index[place]]], entries.data[place]
    return (
        f"the entry at row {entries.row[place]}, column {entries.col[place]} is stored twice ({one} and {two}); "
        "keep one, or their mean"
    )


def _place(rows: sparse.csr_array, place: int) -> tuple[int, int]:
    return int(np.searchsorted(rows.indptr, place, side="right")) - 1, int(rows.indices[place])
