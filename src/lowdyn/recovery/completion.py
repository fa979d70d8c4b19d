"""DeepMatrixCompletion: a scikit-learn estimator that completes a matrix by a deep factorization."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.random import RandomState
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lowdyn.recovery.course import Ending, fit_with_trial, fit_without_trial
from lowdyn.recovery.fitting import OnIteration, unwatched
from lowdyn.recovery.observations import Observations, Values
from lowdyn.recovery.parameters import check_parameters
from lowdyn.recovery.rows import solve_rows
from lowdyn.recovery.saved import SavedEstimates
from lowdyn.recovery.start import Start
from lowdyn.recovery.weights import weighted


class DeepMatrixCompletion(ClassNamePrefixFeaturesOutMixin, TransformerMixin, SavedEstimates, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
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
    loss_curve_ : objective per observation at every iteration of the final fit.
    validation_curve_ : root mean square error on the held-out observations, before the first iteration and after each;
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

    def fit(self, X: Any, y: None = None, sample_weight: Any = None, *, on_iteration: OnIteration = unwatched) -> Self:
        """Fit to a matrix (rows, columns), SciPy sparse (a stored zero is observed) or dense (NaN is not observed).

        ``sample_weight`` counts observations: 2 for an entry observed twice, 0 for one that was not, 1/σ² for one with
        an error of σ. It holds one for every row (rows,), which is that of each of its entries, or is a matrix like X
        with one for every entry: sparse and stored at the same places, or dense. More of all of them is more data
        against the ridge of the biases, which is 8 · ``regularization`` observations in any unit of weights (so with
        1/σ² the unit of X matters to it); where ``center`` is not "bias", a factor of all weights changes nothing.
        ``on_iteration(count, error)`` is called after every iteration: of the trial with held-out entries, with their
        error in the units of X, then of the fit to all entries, which counts anew, with NaN.
        ValueError when nothing is observed, for infinity, for an entry stored twice (the first is named), and for
        weights that are negative, not finite, all zero, or of another shape or other places than X.
        ConvergenceWarning when ``max_iter`` ends a descent that was still gaining.

        >>> seen = np.array([[1.0, 2.0], [1.0, 2.0], [9.0, 9.0]])
        >>> DeepMatrixCompletion(rank=1, center="mean").fit(seen, sample_weight=[1, 3, 0]).mean_
        1.5
        """
        check_parameters(self)
        seen = self._read(X, reset=True)
        if len(seen) == 0:
            raise ValueError(f"X of shape {seen.shape} has no observed entries; at least one is needed")
        seen = seen if sample_weight is None else weighted(seen, sample_weight)
        random_state = check_random_state(self.random_state)
        starting = partial(
            Start.of,
            rank=self.rank,
            depth=self.depth,
            center=self.center,
            init_scale=self.init_scale,
            discrepant_ratio=self.discrepant_ratio,
            regularization=self.regularization,
            random_state=random_state,
        )
        ending = Ending(self.tol, self.max_iter, on_iteration)
        if self.warm_start and hasattr(self, "_factors"):
            outcome = fit_without_trial(starting(seen).grown(self._factors), self.regularization_, ending)
        elif self.early_stopping:
            outcome = fit_with_trial(
                seen, self.validation_fraction, starting, self.regularization, ending, random_state
            )
        else:
            outcome = fit_without_trial(starting(seen), self.regularization, ending)
        if not outcome.settled:
            warnings.warn(
                f"descent was still gaining after max_iter={self.max_iter} iterations; raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.n_iter_, self.loss_curve_ = len(outcome.losses), outcome.losses
        self.validation_curve_, self.regularization_ = outcome.errors, outcome.regularization
        self._seen = (seen.starts, seen.columns)
        self._hold(outcome.factors, outcome.mean, seen.limits, outcome.penalty)
        return self

    def fit_transform(self, X: Any, y: None = None, sample_weight: Any = None) -> Values:
        """Fit to X as ``fit`` does; return its rows' coordinates (rows, clipped rank), ``@ components_`` the product.

        These were trained together with everything else. ``transform`` gives other, if close, coordinates to the same
        rows: it solves for each row alone, on column factors that stay fixed.

        >>> DeepMatrixCompletion(rank=2, random_state=0).fit_transform(np.eye(4, 3)).shape
        (4, 2)
        """
        self.fit(X, sample_weight=sample_weight)
        return self._factors.left @ self._to_coordinates

    def transform(self, X: Any) -> Values:
        """Return coordinates (rows, clipped rank) of *new* rows, by ridge regression on the fixed column factors.

        Each row is fitted on its own, with the decay of the fit and a bias; one without entries has coordinates zero.

        >>> table = np.outer(np.arange(1, 10), np.arange(1, 6))
        >>> model = DeepMatrixCompletion(rank=1, center="none", random_state=0).fit(table)
        >>> (model.transform([[np.nan, 22, 33, np.nan, np.nan]]) @ model.components_).round(1)
        array([[11., 22., 33., 44., 55.]])
        """
        check_is_fitted(self)
        seen = self._read(X, reset=False)
        left = solve_rows(seen, self._factors, self.mean_, self._penalty, with_bias=self.center == "bias")
        return (left @ self._to_coordinates).astype(seen.values.dtype)

    def _read(self, X: Any, *, reset: bool) -> Observations:
        if sparse.issparse(X):
            seen = Observations.read(X)  # before anything sums entries that are there twice
            validate_data(self, X, reset=reset, skip_check_array=True)
            return seen
        dense = validate_data(self, X, reset=reset, dtype=(np.float64, np.float32), ensure_all_finite="allow-nan")
        return Observations.read(dense)
