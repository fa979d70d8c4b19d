"""What is observed of a matrix: read from sparse or dense input, checked once, kept row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lowdyn.problems.entries import Entries

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

        Errors as of :meth:`~lowdyn.problems.entries.Entries.from_sparse`: ValueError for infinity, for NaN that is
        stored, for an entry stored twice (the first is named) and for an index out of range.

        >>> Observations.read(np.array([[1.0, np.nan], [np.nan, 2.0]])).columns
        array([0, 1], dtype=int32)
        """
        if sparse.issparse(matrix):
            rows = Entries.from_sparse(matrix).by_row
        else:
            dense = np.asarray(matrix)
            rows = Entries.from_dense(dense, ~np.isnan(dense)).by_row
        return cls(rows.shape, rows.indptr, rows.indices, rows.data)

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
        """Return the entries (or others at their places) as a SciPy CSR array; a stored zero stays stored."""
        data = self.values if values is None else values
        return sparse.csr_array((data, self.columns, self.starts), shape=self.shape, copy=False)
