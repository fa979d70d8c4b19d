"""DeepMatrixCompletion: a scikit-learn estimator that completes a matrix by a deep factorization."""

from __future__ import annotations

import os
import warnings
from typing import Any, Self

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lowdyn.arguments import checked_count, checked_indices
from lowdyn.recovery import fitting, storage
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.fitting import Fit, OnIteration, fit_by_validation, fit_on_schedule, fit_to_rest
from lowdyn.recovery.objective import Factors, Penalty
from lowdyn.recovery.observations import Observations, Values
from lowdyn.recovery.parameters import check_parameters
from lowdyn.recovery.rows import solve_rows
from lowdyn.recovery.start import Start

Mask = NDArray[np.bool_]
ALIVE = 0.01  # a singular value below this share of the largest does not count towards the rank


class DeepMatrixCompletion(TransformerMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Complete a matrix of which some entries are observed: x_ij ≈ mean + b_i + c_j + (U C … C Vᵀ)_ij.

    A network of ``depth`` factors is trained by gradient descent on the observed entries, from a spectral start, with
    rates, decay and number of iterations taken from the data. Inner factors are ``rank`` x ``rank``; descent with
    decay lets small singular values die, so ``rank`` is a ceiling. Memory is O(observed + (rows + columns) · rank).
    The unit of the values does not matter.

    Parameters
    ----------
    rank : at least 1; above the smaller side of the matrix it is clipped there, without a word: the clipped rank is the
        length of ``singular_values_``, while ``rank_`` counts those of them that are alive.
    depth : number of factors, at least 2. 2 is the usual factorization; 3 shrinks large singular values less.
    center : "bias" trains mean, row and column biases too, "mean" takes the mean off, "none" takes nothing off.
    init_scale : scale of every factor at the start, 1 = the spectrum's own; below about 0.6 a start of depth 3 stays
        at the saddle point zero.
    discrepant_ratio : learning rate of the outer factors over that of the inner ones.
    regularization : decay in units of the noise, which is measured on the spectrum with random signs: 1 shuts out
        what is no larger than noise at once, 0 means no decay. With early stopping it is where the search begins;
        it is halved as long as that lowers the validation error.
    early_stopping : choose the number of iterations and the decay by the error on a share of the entries held out,
        then fit all entries that way. Without it, or with too few entries to hold two out, descent goes on to rest.
    validation_fraction : share of the entries held out, in (0, 1).
    max_iter : most iterations of descent, in either of the two fits.
    tol : descent ends when an iteration lowers the objective by less than this, relatively; with early stopping, when
        the validation error is less than this share of the entries.
    warm_start : go on from the factors of the last fit, with its regularization, to rest and without early stopping
        (held-out entries would not be new to them). The matrix may have grown by rows and columns at the end.
    random_state : seed, RandomState or None; chooses the held-out entries, the signs, the start of the spectrum.

    Attributes
    ----------
    n_iter_ : iterations of the final fit.
    loss_curve_ : objective per observed entry at every iteration of the final fit.
    validation_curve_ : root mean square error on the held-out entries, before the first iteration and after each;
        empty without early stopping.
    regularization_ : what it ended with.
    rank_ : number of singular values above one hundredth of the largest; at most the clipped rank, mostly less.
    singular_values_ : (clipped rank,) of the factorization without its biases, dead ones included.
    components_ : (clipped rank, columns), orthonormal: the right singular vectors.
    mean_, row_bias_, column_bias_ : number, (rows,), (columns,).
    n_features_in_ : number of columns.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> truth = generator.normal(size=(60, 2)) @ generator.normal(size=(2, 40))
    >>> seen = np.where(generator.random(truth.shape) < 0.5, truth, np.nan)
    >>> model = DeepMatrixCompletion(rank=5, random_state=0).fit(seen)
    >>> model.rank_
    2
    """

    regularization_: float

    def __init__(
        self,
        rank: int = 10,
        depth: int = 3,
        center: str = "bias",
        init_scale: float = 0.8,
        discrepant_ratio: float = 20.0,
        regularization: float = 0.5,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        max_iter: int = 1000,
        tol: float = 1e-4,
        warm_start: bool = False,
        random_state: int | RandomState | None = None,
    ) -> None:
        self.rank = rank
        self.depth = depth
        self.center = center
        self.init_scale = init_scale
        self.discrepant_ratio = discrepant_ratio
        self.regularization = regularization
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: None = None, *, on_iteration: OnIteration = fitting.unwatched) -> Self:
        """Fit to a matrix (rows, columns), SciPy sparse (a stored zero is observed) or dense (NaN is not observed).

        ``on_iteration(count, error)`` is called after every iteration: of the trial with held-out entries, with their
        error in the units of X, then of the fit to all entries, which counts anew, with NaN.
        ValueError when nothing is observed, for infinity, or for an entry stored twice (the first is named).
        ConvergenceWarning when ``max_iter`` ends a descent that was still gaining.
        """
        check_parameters(self)
        known = self._factors if self.warm_start and hasattr(self, "_factors") else None
        seen = self._read(X, reset=True)
        if len(seen) == 0:
            raise ValueError(f"X of shape {seen.shape} has no observed entries; at least one is needed")
        regularization: float = self.regularization if known is None else self.regularization_
        random_state = check_random_state(self.random_state)
        held_out = self._held_out(len(seen), random_state) if known is None else None
        trial = self._try(seen, held_out, random_state, on_iteration) if held_out is not None else None
        start = self._start(seen, random_state)
        if known is not None:
            start = start.grown(known)
        if trial is None:
            penalties = [start.penalty(regularization)]
            final = fit_to_rest(start.objective, start.factors, penalties[0], self.tol, self.max_iter, on_iteration)
        else:
            schedule = trial.schedule or [regularization]
            regularization, penalties = schedule[-1], [start.penalty(one) for one in schedule]
            factors = start.factors.without_product() if trial.biases_suffice else start.factors
            final = fit_on_schedule(start.objective, factors, penalties[: len(trial.schedule)], on_iteration)
        if not (final.settled if trial is None else trial.settled):
            warnings.warn(
                f"descent was still gaining after max_iter={self.max_iter} iterations; raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.regularization_ = regularization
        self.validation_curve_ = np.array([] if trial is None else trial.errors)
        self._keep(seen, start, final, penalties[-1])
        return self

    def fit_transform(self, X: Any, y: None = None) -> Values:
        """Fit to X; return its rows' coordinates (rows, clipped rank), with ``@ components_`` the fitted product.

        These were trained together with everything else. ``transform`` gives other, if close, coordinates to the same
        rows: it solves for each row alone, on column factors that stay fixed.
        """
        self.fit(X)
        return self._factors.left @ self._to_coordinates

    def transform(self, X: Any) -> Values:
        """Return coordinates (rows, clipped rank) of *new* rows, by ridge regression on the fixed column factors.

        Each row is fitted on its own, with the decay of the fit and a bias of its own; a row without entries has
        coordinates zero. Not the same as ``fit_transform`` for the rows of the fit.
        """
        check_is_fitted(self)
        seen = self._read(X, reset=False)
        left = solve_rows(seen, self._factors, self.mean_, self._penalty, with_bias=self.center == "bias")
        return (left @ self._to_coordinates).astype(seen.values.dtype)

    def predict_entries(self, rows: ArrayLike, columns: ArrayLike, clip: bool = True) -> Values:
        """Return the estimates at the indices ``rows`` (entries,) and ``columns`` (entries,).

        A row or column that the fit did not see, or an index beyond its matrix, counts with a bias and factors of zero.
        ``clip`` keeps the estimates within the range of the observed entries. ValueError for negative indices.
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
        """Return the estimate of every entry: a dense matrix (rows, columns), which no other method forms."""
        check_is_fitted(self)
        values = (self._factors.left @ self._factors.core) @ self._factors.right.T
        values += self.row_bias_[:, None]
        values += self.column_bias_ + values.dtype.type(self.mean_)
        return np.clip(values, *self._range, out=values) if clip else values

    def recommend(self, row: int, n: int = 10, unseen_only: bool = True) -> tuple[NDArray[np.int64], Values]:
        """Return the ``n`` columns of highest estimate for a row, best first, and those estimates (not clipped).

        Columns observed in that row are left out if ``unseen_only``, so fewer than ``n`` may come back. A row that the
        fit did not see gets the columns of highest bias.
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one safetensors file, parameters as JSON in its header, whole or not at all.

        A ``random_state`` that is a RandomState is not kept: the model that is loaded has None. ValueError or TypeError
        for parameters, set since the fit, that ``fit`` would refuse.
        """
        check_is_fitted(self)
        arrays = {name: getattr(self, name) for name in ("loss_curve_", "validation_curve_")}
        arrays |= {"seen_starts": self._seen[0], "seen_columns": self._seen[1]}
        arrays |= {f"factor_{place}": one for place, one in enumerate(self._factors.arrays())}
        numbers = {"mean": self.mean_, "range": self._range, "penalty": self._penalty, "n_iter": self.n_iter_}
        names = getattr(self, "feature_names_in_", None)
        numbers |= {"regularization": self.regularization_, "depth": 2 + len(self._factors.cores)}
        numbers["feature_names"] = None if names is None else list(names)
        storage.save(path, self.get_params(), numbers, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a model that ``save`` wrote.

        FileNotFoundError where no file is; ValueError for another file, in one line that names it and what is wrong.
        """
        parameters, numbers, arrays, factors = storage.load(path, cls().get_params())
        model = cls(**parameters)
        model.loss_curve_, model.validation_curve_ = arrays["loss_curve_"], arrays["validation_curve_"]
        model.regularization_ = numbers["regularization"]
        model.n_iter_, model._seen = numbers["n_iter"], (arrays["seen_starts"], arrays["seen_columns"])
        model._hold(factors, numbers["mean"], tuple(numbers["range"]), Penalty(*numbers["penalty"]))
        model.n_features_in_ = len(factors.right)
        if numbers["feature_names"] is not None:
            model.feature_names_in_ = np.array(numbers["feature_names"], dtype=object)
        return model

    def _read(self, X: Any, *, reset: bool) -> Observations:
        if sparse.issparse(X):
            seen = Observations.read(X)  # before anything sums entries that are there twice
            validate_data(self, X, reset=reset, skip_check_array=True)
            return seen
        dense = validate_data(self, X, reset=reset, dtype=(np.float64, np.float32), ensure_all_finite="allow-nan")
        return Observations.read(dense)

    def _held_out(self, entries: int, random_state: RandomState) -> Mask | None:
        count = int(self.validation_fraction * entries)
        if not self.early_stopping or count < 2 or entries - count < 2:
            return None
        chosen = np.zeros(entries, bool)
        chosen[random_state.choice(entries, count, replace=False)] = True
        return chosen

    def _start(self, seen: Observations, random_state: RandomState) -> Start:
        names = ("rank", "depth", "center", "init_scale", "discrepant_ratio", "regularization")
        return Start.of(seen, random_state=random_state, **{name: getattr(self, name) for name in names})

    def _try(self, seen: Observations, held_out: Mask, random_state: RandomState, on_iteration: OnIteration) -> Fit:
        """Return the fit to the entries that are not held out, its errors in the units of X."""
        start = self._start(seen.select(~held_out), random_state)
        rule = (self.regularization, start.penalty, self.tol, self.max_iter)
        watch = fitting.in_units(start.scale, on_iteration)
        fit = fit_by_validation(start.objective, start.factors, start.apply(seen.select(held_out)), *rule, watch)
        fit.errors = [start.scale * error for error in fit.errors]
        return fit

    def _keep(self, seen: Observations, start: Start, final: Fit, penalty: Penalty) -> None:
        """Set the attributes of a fit, in the units of X."""
        self.n_iter_ = len(final.losses)
        self.loss_curve_ = np.array(final.losses) * (start.scale**2 / len(seen))
        self._seen = (seen.starts, seen.columns)
        limits = (float(seen.values.min()), float(seen.values.max()))
        # In the units that scaled() gives a factor, and the objective, λ is another number.
        penalty = Penalty(penalty.decay * start.scale ** (2 - 2 / self.depth), penalty.ridge)
        self._hold(final.factors.scaled(start.scale), start.mean, limits, penalty)

    def _hold(self, factors: Factors, mean: float, limits: tuple[float, float], penalty: Penalty) -> None:
        self._factors, self._range, self._penalty = factors, limits, penalty
        self.mean_, self.row_bias_, self.column_bias_ = mean, factors.row_bias, factors.column_bias
        right, coordinates = np.linalg.qr(factors.right)
        inner = np.linalg.qr(factors.left @ factors.core, mode="r") @ coordinates.T
        _, values, components = np.linalg.svd(inner, full_matrices=False)
        self.singular_values_, self.components_ = values, components @ right.T
        self._to_coordinates = factors.core @ coordinates.T @ components.T
        self.rank_ = int((values > ALIVE * values[0]).sum())
