"""DeepMatrixCompletion: matrices that it must recover, and what may not change a fit."""

import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from lowdyn import DeepMatrixCompletion
from lowdyn.data import load_ratings
from lowdyn.recovery.objective import Factors, Objective, Penalty
from lowdyn.recovery.observations import Observations
from tests.partial_fits import as_sparse, fitted, low_rank, relative_error

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- truth


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_matrix_of_low_rank_is_recovered_and_its_rank_is_found(depth):
    truth, seen = low_rank(80, 60, 2)
    model = fitted(seen, depth=depth, center="none")
    assert relative_error(model, truth, seen) < 1e-3
    assert model.rank_ == 2  # of the ten allowed
    # No nearer than the entries: a singular value is off by at most the norm of the error (Weyl).
    np.testing.assert_allclose(model.singular_values_[:2], np.linalg.svd(truth)[1][:2], rtol=1e-3)


def test_noise_is_not_fitted():
    """The error is that of rank-2 estimation under noise, √(σ² r (m + n) / |Ω|) within a factor, not that of a fit."""
    truth, seen = low_rank(150, 100, 2, noise=0.5)
    model = fitted(seen, center="none")
    entries = (~np.isnan(seen)).sum()
    ideal = 0.5 * np.sqrt(2 * 250 / entries) / np.sqrt(np.mean(truth**2))
    assert 0.5 * ideal < relative_error(model, truth, seen) < 1.6 * ideal


def test_where_there_is_nothing_but_noise_the_biases_are_all():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(120, 1)) + generator.normal(size=80)
    seen = np.where(generator.random(truth.shape) < 0.3, truth + generator.normal(size=truth.shape), np.nan)
    model = fitted(seen)
    assert (model.rank_, model.n_iter_) == (0, 0)
    assert relative_error(model, truth, seen) < 0.3  # σ = 1, some thirty entries for each bias


def test_biases_alone_are_recovered():
    generator = np.random.default_rng(1)
    truth = 3 + generator.normal(size=(40, 1)) + generator.normal(size=30)
    seen = np.where(generator.random(truth.shape) < 0.5, truth, np.nan)
    assert relative_error(fitted(seen), truth, seen) < 0.02


@pytest.mark.parametrize("center", ["bias", "mean", "none"])
def test_a_constant_matrix_is_itself(center):
    seen = np.full((6, 5), 3.0)
    seen[0, 1] = np.nan
    model = fitted(seen, center=center)
    assert model.complete()[0, 1] == pytest.approx(3.0, abs=0.01)
    if center != "none":
        assert model.rank_ == 0


def test_movielens_is_completed_to_the_published_error():
    if not (DATA / "ml-100k").is_dir():
        pytest.skip(f"no ratings: {DATA / 'ml-100k'} is not there")
    train, test = load_ratings(folder=DATA).fold(4)
    model = fitted(train.matrix())
    error = np.sqrt(np.mean((model.predict_entries(test.rows, test.columns) - test.values) ** 2))
    assert error < 0.91  # biases alone: 0.936; Surprise's SVD++: 0.917


# --- what may not matter


def test_sparse_dense_and_every_format_are_the_same():
    _, seen = low_rank(30, 20, 2, noise=0.1)
    seen[0, 0] = 0.0  # a stored zero is observed
    expected = fitted(seen).complete()
    for convert in (sparse.csr_array, sparse.csc_array, sparse.csr_matrix):
        np.testing.assert_array_equal(fitted(convert(as_sparse(seen))).complete(), expected)
    unsorted = as_sparse(seen)
    order = np.random.default_rng(0).permutation(unsorted.nnz)
    shuffled = sparse.coo_array((unsorted.data[order], (unsorted.row[order], unsorted.col[order])), shape=seen.shape)
    np.testing.assert_array_equal(fitted(shuffled).complete(), expected)
    np.testing.assert_array_equal(shuffled.row, unsorted.row[order])  # the caller's matrix is as it was


def test_the_unit_of_the_values_does_not_matter():
    _, seen = low_rank(40, 30, 2, noise=0.3)
    model = fitted(seen)
    for unit in (1e-150, 1000.0, 1e150):
        other = fitted(unit * seen)
        assert other.n_iter_ == model.n_iter_
        np.testing.assert_allclose(other.complete(), unit * model.complete(), rtol=1e-6, atol=1e-6 * unit)
        np.testing.assert_allclose(other.validation_curve_, unit * model.validation_curve_, rtol=1e-6)


def test_a_shift_is_taken_up_by_the_mean():
    _, seen = low_rank(40, 30, 2, noise=0.3)
    np.testing.assert_allclose(fitted(seen + 100).complete(), fitted(seen).complete() + 100, atol=1e-6)


def test_transposition_exchanges_rows_and_columns():
    """Of the objective and its gradient; a fit draws other signs and another start for the transpose."""
    generator = np.random.default_rng(4)
    _, seen = low_rank(9, 7, 2)
    arrays = [generator.normal(size=shape) for shape in [(9, 3), (7, 3), (9,), (7,), (3, 3), (3, 3)]]
    left, right, row_bias, column_bias, one, two = arrays
    turned = [right, left, column_bias, row_bias, two.T, one.T]
    results = [
        Objective(Observations.read(x), 3, discrepant_ratio=1.0, trained_biases=True).gradient(
            Factors.of(factors), Penalty(0.3, 0.7)
        )
        for x, factors in ((seen, arrays), (seen.T, turned))
    ]
    (loss, gradients, rates), (other_loss, other_gradients, other_rates) = results
    assert loss == pytest.approx(other_loss, rel=1e-12)
    for place, twin in ((0, 1), (1, 0), (2, 3), (3, 2)):
        np.testing.assert_allclose(gradients[place], other_gradients[twin], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(rates[0], other_rates[1], rtol=1e-10)
    np.testing.assert_allclose(gradients[4], other_gradients[5].T, rtol=1e-10, atol=1e-12)


def test_a_seed_decides_everything():
    _, seen = low_rank(40, 30, 2, noise=0.3)
    one, same, other = (fitted(seen, random_state=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.complete(), same.complete())
    assert not np.array_equal(one.complete(), other.complete())
    np.testing.assert_array_equal(fitted(seen, random_state=np.random.RandomState(3)).complete(), one.complete())


def test_empty_rows_and_columns_change_nothing_and_fall_back_to_the_mean():
    _, seen = low_rank(40, 30, 2, noise=0.3)
    wider = np.full((43, 32), np.nan)
    wider[:40, :30] = seen
    model, expected = (fitted(x, depth=2, early_stopping=False, tol=1e-9) for x in (wider, seen))
    estimates = model.complete(clip=False)
    np.testing.assert_allclose(estimates[:40, :30], expected.complete(clip=False), atol=0.02)
    np.testing.assert_allclose(estimates[40:, 30:], model.mean_)
    np.testing.assert_allclose(estimates[41, :30], model.mean_ + model.column_bias_[:30])


def test_single_precision_stays_single_and_agrees():
    _, seen = low_rank(40, 30, 2, noise=0.3)
    one, other = fitted(seen), fitted(seen.astype(np.float32))
    assert other.complete().dtype == other.components_.dtype == other.transform(seen.astype(np.float32)).dtype == "f4"
    np.testing.assert_allclose(other.complete(), one.complete(), atol=0.05)


def test_memory_does_not_know_the_full_shape():
    """200 000 x 20 000 with 20 000 entries: the dense matrix would take 32 GB."""
    generator = np.random.default_rng(0)
    rows, columns = np.arange(20_000) * 10, generator.permutation(20_000)
    matrix = sparse.coo_array((generator.normal(size=20_000), (rows, columns)), shape=(200_000, 20_000))
    model = DeepMatrixCompletion(rank=3, max_iter=2, early_stopping=False, random_state=0)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(matrix)
        model.predict_entries(rows, columns)
        model.recommend(5)
        assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    finally:
        tracemalloc.stop()
