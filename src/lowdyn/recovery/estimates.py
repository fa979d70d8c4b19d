"""What is known of a matrix once it is fitted: its singular values, and estimates of its entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from lowdyn.arguments import checked_count, checked_indices
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.objective import Factors, Penalty
from lowdyn.recovery.observations import Values

ALIVE = 0.01  # a singular value below this share of the largest does not count towards the rank


class Estimates:
    """A fitted factorization, and where its matrix was observed. Attributes as of DeepMatrixCompletion.

    A part of that class and not an object of its own, since pickles hold its attributes by their names.
    """

    mean_: float
    row_bias_: Values
    column_bias_: Values
    singular_values_: Values
    components_: Values
    rank_: int
    _factors: Factors
    _range: tuple[float, float]
    _penalty: Penalty
    _seen: tuple[NDArray[np.int64], NDArray[np.int32]]  # starts of the rows, columns
    _to_coordinates: Values

    @property
    def _n_features_out(self) -> int:  # as many names come from scikit-learn's get_feature_names_out
        return len(self.components_)

    def predict_entries(self, rows: ArrayLike, columns: ArrayLike, clip: bool = True) -> Values:
        """Return the estimates at the indices ``rows`` (entries,) and ``columns`` (entries,).

        A row or column that the fit did not see, or an index beyond its matrix, counts with a bias and factors of zero.
        ``clip`` keeps the estimates within the range of the observed entries. ValueError for negative indices.

        >>> from lowdyn import DeepMatrixCompletion
        >>> seen = np.outer(np.arange(1.0, 10.0), np.arange(1.0, 6.0))
        >>> seen[4, 2] = np.nan  # it was 15
        >>> DeepMatrixCompletion(rank=1, random_state=0).fit(seen).predict_entries([4, 3], [2, 1]).round(1)
        array([15.,  8.])
        """
        check_is_fitted(self)
        rows, columns = checked_indices("rows", rows), checked_indices("columns", columns)
        if rows.shape != columns.shape:
            raise ValueError(f"rows and columns are indices of the same entries, got {len(rows)} and {len(columns)}")
        known = (rows < len(self.row_bias_)) & (columns < len(self.column_bias_))
        values = Biases(self.mean_, self.row_bias_, self.column_bias_).at(rows, columns)
        values[known] = self.mean_ + self._factors.at(rows[known], columns[known])
        return np.clip(values, *self._range) if clip else values

    def complete(self, clip: bool = True) -> Values:
        """Return the estimate of every entry: a dense matrix (rows, columns), which no other method forms.

        >>> from lowdyn import DeepMatrixCompletion
        >>> DeepMatrixCompletion().fit([[2.0, np.nan, 2.0], [2.0, 2.0, np.nan]]).complete()
        array([[2., 2., 2.],
               [2., 2., 2.]])
        """
        check_is_fitted(self)
        values: Values = (self._factors.left @ self._factors.core) @ self._factors.right.T
        values += self.row_bias_[:, None]
        values += self.column_bias_ + values.dtype.type(self.mean_)
        return np.clip(values, *self._range, out=values) if clip else values

    def recommend(self, row: int, n: int = 10, unseen_only: bool = True) -> tuple[NDArray[np.int64], Values]:
        """Return the ``n`` columns of highest estimate for a row, best first, and those estimates (not clipped).

        Columns observed in that row are left out if ``unseen_only``, so fewer than ``n`` may come back. A row that the
        fit did not see gets the columns of highest bias.

        >>> from lowdyn import DeepMatrixCompletion
        >>> seen = np.outer(np.arange(1.0, 10.0), np.arange(1.0, 6.0))
        >>> seen[4, 2] = seen[4, 3] = np.nan
        >>> columns, estimates = DeepMatrixCompletion(rank=1, random_state=0).fit(seen).recommend(4)
        >>> columns, estimates.round(1)
        (array([3, 2]), array([20., 15.]))
        """
        check_is_fitted(self)
        row, n = checked_count("row", row), checked_count("n", n, at_least=1)
        columns = np.arange(len(self.column_bias_))
        if unseen_only and row < len(self.row_bias_):
            seen = self._seen[1][self._seen[0][row] : self._seen[0][row + 1]]
            columns = np.setdiff1d(columns, seen, assume_unique=True)
        values = self.predict_entries(np.full(len(columns), row), columns, clip=False)
        best = np.argsort(-values, kind="stable")[:n]
        return columns[best], values[best]

    def _hold(self, factors: Factors, mean: float, limits: tuple[float, float], penalty: Penalty) -> None:
        """Set what follows from the factors, in the units of the matrix."""
        self._factors, self._range, self._penalty = factors, limits, penalty
        self.mean_, self.row_bias_, self.column_bias_ = mean, factors.row_bias, factors.column_bias
        right, coordinates = np.linalg.qr(factors.right)
        inner = np.linalg.qr(factors.left @ factors.core, mode="r") @ coordinates.T
        _, values, components = np.linalg.svd(inner, full_matrices=False)
        self.singular_values_, self.components_ = values, components @ right.T
        self._to_coordinates = factors.core @ coordinates.T @ components.T
        self.rank_ = int((values > ALIVE * values[0]).sum())
