"""What is observed of a matrix: read from sparse or dense input, checked once, kept row by row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    ``weights`` (entries,), above zero, say how many observations an entry stands for; None where each is one.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: Values = field(repr=False)
    weights: Values | None = field(default=None, repr=False)

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
    def count(self) -> float:
        """Number of observations, those that entries stand for."""
        return len(self) if self.weights is None else float(self.weights.sum(dtype=np.float64))

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest of the values."""
        return float(self.values.min()), float(self.values.max())

    @property
    def row_counts(self) -> NDArray[Any]:
        """Number of observations of every row (rows,)."""
        if self.weights is None:
            return np.diff(self.starts)
        return np.bincount(self.rows, self.weights, minlength=self.shape[0])

    @property
    def column_counts(self) -> NDArray[Any]:
        """Number of observations of every column (columns,)."""
        return np.bincount(self.columns, self.weights, minlength=self.shape[1])

    def weighed(self, values: Values) -> Values:
        """Return numbers of the entries (entries,) times their weights."""
        return values if self.weights is None else values * self.weights

    def mean(self, values: Values) -> float:
        """Return the mean over all observations of numbers of the entries (entries,)."""
        return float(self.weighed(values).sum(dtype=np.float64) / self.count)

    def with_values(self, values: Values) -> Observations:
        """Return other values at the same places."""
        return replace(self, values=values)

    def select(self, chosen: NDArray[np.bool_]) -> Observations:
        """Return the entries that ``chosen`` (entries,) marks, of a matrix of the same shape."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        weights = None if self.weights is None else self.weights[chosen]
        return Observations(self.shape, before[self.starts], self.columns[chosen], self.values[chosen], weights)

    def to_csr(self, values: Values | None = None) -> Any:
        """Return the entries (or others at their places) as a SciPy CSR array; a stored zero stays stored."""
        data = self.values if values is None else values
        return sparse.csr_array((data, self.columns, self.starts), shape=self.shape, copy=False)
