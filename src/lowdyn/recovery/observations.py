"""What is observed of a matrix: read from sparse or dense input, checked once, kept row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Values = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Observations:
    """The observed entries of a matrix, ordered by row, then by column, none twice.

    Entries ``starts[i]`` to ``starts[i + 1]`` belong to row i: ``columns`` (entries,) and ``values`` (entries,).
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: Values = field(repr=False)

    @classmethod
    def read(cls, matrix: Any) -> Observations:
        """Return the observed entries of ``matrix``: the stored ones of a SciPy sparse matrix, zeros included, or
        those of a dense array (rows, columns) that are not NaN. float32 stays, other numbers become float64.

        ValueError for infinity, NaN in a sparse matrix, an entry stored twice (the first such is named) or an index
        out of range; TypeError for what is not numeric.

        >>> Observations.read([[1.0, np.nan], [np.nan, 2.0]]).columns
        array([0, 1], dtype=int32)
        """
        return cls._from_sparse(matrix) if sparse.issparse(matrix) else cls._from_dense(np.asarray(matrix))

    @classmethod
    def _from_dense(cls, array: NDArray[Any]) -> Observations:
        array = _checked_numbers(array)
        if array.ndim != 2:
            raise ValueError(f"X must be a matrix (rows, columns), got shape {array.shape}; reshape your data")
        seen = ~np.isnan(array)
        starts = np.concatenate([[0], np.cumsum(seen.sum(axis=1))])
        rows, columns = np.nonzero(seen)
        values = array[seen]
        _check_finite(values, rows, columns)
        return cls(array.shape, starts.astype(np.int64), columns.astype(np.int32), values)

    @classmethod
    def _from_sparse(cls, matrix: Any) -> Observations:
        if matrix.ndim != 2:
            raise ValueError(f"X must be a matrix (rows, columns), got shape {matrix.shape}")
        if matrix.format == "csr":
            _check_structure(matrix)
        rows = matrix.tocsr(copy=True)  # a copy: the caller's order stays as it is
        stored = matrix.nnz  # counts an entry that is stored twice twice, where tocsr adds the two
        rows.sum_duplicates()
        values = _checked_numbers(rows.data)
        if rows.nnz != stored:
            row, column = _first_duplicate(matrix)
            raise ValueError(
                f"X has entry ({row}, {column}) more than once ({stored - rows.nnz} repeats in all); keep one of "
                "each, or add them up before with sum_duplicates()"
            )
        _check_finite(values, np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.indices, sparse=True)
        return cls(rows.shape, rows.indptr.astype(np.int64), rows.indices.astype(np.int32), values)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def rows(self) -> NDArray[np.int32]:
        """Row of every entry (entries,)."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.starts))

    @property
    def row_counts(self) -> NDArray[np.int64]:
        """Number of observed entries of every row (rows,)."""
        return np.diff(self.starts)

    @property
    def column_counts(self) -> NDArray[np.int64]:
        """Number of observed entries of every column (columns,)."""
        return np.bincount(self.columns, minlength=self.shape[1])

    def with_values(self, values: Values) -> Observations:
        """Return other values at the same places."""
        return Observations(self.shape, self.starts, self.columns, values)

    def select(self, chosen: NDArray[np.bool_]) -> Observations:
        """Return the entries that ``chosen`` (entries,) marks, of a matrix of the same shape."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return Observations(self.shape, before[self.starts], self.columns[chosen], self.values[chosen])

    def to_csr(self, values: Values | None = None) -> Any:
        """Return the entries (or others at their places) as a SciPy sparse matrix; a stored zero stays stored."""
        data = self.values if values is None else values
        return sparse.csr_matrix((data, self.columns, self.starts), shape=self.shape, copy=False)


def _checked_numbers(array: NDArray[Any]) -> Values:
    if array.dtype.kind == "O":
        array = array.astype(np.float64)
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported: X must be real")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"X must be a matrix of numbers, got {array.dtype}")
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _check_finite(values: Values, rows: Any, columns: Any, *, sparse: bool = False) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(np.argmax(bad))
        # scikit-learn's conformance tests look for the words "NaN" and "infinity".
        remedy = "; leave out what is not observed, or pass a dense array with NaN there" if sparse else ""
        raise ValueError(
            f"X contains NaN or infinity: {values[first]} at ({rows[first]}, {columns[first]}), {int(bad.sum())} such "
            f"entries in all{remedy}"
        )


def _check_structure(matrix: Any) -> None:
    """Refuse the index arrays that SciPy lets through when they are set by hand."""
    indices = matrix.indices
    if indices.size and (indices.min() < 0 or indices.max() >= matrix.shape[1]):
        bad = indices[(indices < 0) | (indices >= matrix.shape[1])][0]
        raise ValueError(f"X stores an entry in column {bad}, and has columns 0 to {matrix.shape[1] - 1}")


def _first_duplicate(matrix: Any) -> tuple[int, int]:
    """Return the place of the first entry that repeats an earlier one, in the order in which they are stored."""
    if matrix.format == "csr":
        rows, columns = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices
    elif matrix.format == "csc":
        rows, columns = matrix.indices, np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
    else:
        triples = matrix.tocoo()
        rows, columns = triples.row, triples.col
    order = np.lexsort((columns, rows))  # stable: equal places keep the order in which they are stored
    again = (np.diff(rows[order]) == 0) & (np.diff(columns[order]) == 0)
    first = order[1:][again].min()
    return int(rows[first]), int(columns[first])
