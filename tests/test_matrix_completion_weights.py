"""sample_weight: observations that count more than once, or less; against slow twins, and what may not matter."""

import re
import warnings

import numpy as np
import pytest
import sklearn
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from lowdyn import DeepMatrixCompletion
from lowdyn.problems.entries import Entries
from lowdyn.problems.weighted import WeightedProducts
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.fitting import fit_by_validation
from lowdyn.recovery.objective import Factors, Objective, Penalty
from lowdyn.recovery.observations import Observations
from lowdyn.recovery.spectrum import Spectrum
from lowdyn.recovery.start import Start
from lowdyn.recovery.weights import weighted
from tests.oracles_recovery import biases_by_least_squares, deep_objective
from tests.partial_fits import as_sparse, low_rank, relative_error

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
SEEN = low_rank(40, 30, 2, noise=0.3)[1]


def fitted(seen, sample_weight=None, **parameters):
    return DeepMatrixCompletion(**{"random_state": 0, **parameters}).fit(seen, sample_weight=sample_weight)


def drawn(*shape, seed=7):
    return np.random.default_rng(seed).uniform(0.1, 3.0, size=shape)


def assert_same_fit(one, other):
    for name in ("loss_curve_", "validation_curve_", "components_", "row_bias_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.complete(), other.complete())
    np.testing.assert_array_equal(one.transform(SEEN), other.transform(SEEN))
    np.testing.assert_array_equal(one.recommend(3)[0], other.recommend(3)[0])


# --- twins


@pytest.mark.parametrize("rank", [1, 4, 7, 130])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weighted_products_are_those_of_the_dense_residual(rank, dtype):
    generator = np.random.default_rng(0)
    _, seen = low_rank(9, 12, 2)
    seen[3], seen[:, 5] = np.nan, np.nan
    mask, weights = ~np.isnan(seen), drawn(9, 12).astype(dtype)
    products = WeightedProducts(Entries.from_dense(seen.astype(dtype), mask), weights[mask], rank)
    for _ in range(2):  # nothing of the first is left in the second
        left, right = (torch.from_numpy(generator.normal(size=shape)) for shape in ((9, rank), (rank, 12)))
        products.left.copy_(left)
        products.right.copy_(right)
        loss = products.compute()
        residual = torch.from_numpy(np.where(mask, left.numpy() @ right.numpy() - np.nan_to_num(seen), 0))
        pulled = torch.from_numpy(weights.astype(np.float64)) * residual
        tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 1e-3, "atol": 1e-3}
        assert loss == pytest.approx(0.5 * float((pulled * residual).sum()), rel=tolerance["rtol"])
        for gradient, expected in (
            (products.left_gradient, pulled @ right.mT),
            (products.right_gradient, left.mT @ pulled),
        ):
            torch.testing.assert_close(gradient.to(torch.float64), expected, **tolerance)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_gradient_is_that_of_the_weighted_dense_objective(depth, dtype):
    generator = np.random.default_rng(2)
    _, seen = low_rank(17, 11, 3)
    seen[4], seen[:, 3] = np.nan, np.nan  # a row and a column without entries
    weights = drawn(17, 11)
    observations = weighted(Observations.read(seen.astype(dtype)), weights)
    shapes = [(17, 4), (11, 4), (17,), (11,), *[(4, 4)] * (depth - 2)]
    arrays = [generator.normal(size=shape).astype(dtype) for shape in shapes]
    objective = Objective(observations, 4, discrepant_ratio=2.0, trained_biases=True)
    loss, gradients, rates = objective.gradient(Factors.of(arrays), Penalty(0.3, 0.7))
    tensors = [torch.from_numpy(one.astype(np.float64)).requires_grad_() for one in arrays]
    target, mask = torch.from_numpy(np.nan_to_num(seen)), torch.from_numpy(~np.isnan(seen))
    expected = deep_objective(tensors, target, mask, 0.3, 0.7, torch.from_numpy(weights))
    expected.backward()
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    for gradient, tensor, rate in zip(gradients, tensors, rates, strict=True):
        assert gradient.dtype == rate.dtype == dtype
        scale = float(tensor.grad.abs().max())
        np.testing.assert_allclose(gradient, tensor.grad, atol=tolerance * scale, rtol=0)
        assert (rate > 0).all()


def test_the_rates_of_rows_columns_and_biases_are_those_of_their_weighted_curvature():
    """Of a row half of one over Σ w ‖(V Cᵀ)_j‖² + λ √n, which is above its largest curvature; of a column likewise."""
    _, seen = low_rank(9, 7, 2)
    generator, weights = np.random.default_rng(3), drawn(9, 7)
    arrays = [generator.normal(size=shape) for shape in [(9, 3), (7, 3), (9,), (7,), (3, 3)]]
    observations = weighted(Observations.read(seen), weights)
    objective = Objective(observations, 3, discrepant_ratio=1.0, trained_biases=True)
    _, _, rates = objective.gradient(Factors.of(arrays), Penalty(0.3, 0.7))
    left, right, core = arrays[0], arrays[1], arrays[4]
    held = np.where(np.isnan(seen), 0, weights)
    for own, fixed, rate, bias_rate in ((held, right @ core.T, *rates[::2][:2]), (held.T, left @ core, *rates[1:4:2])):
        n = own.sum(axis=1)
        np.testing.assert_allclose(rate[:, 0], 0.5 / (own @ (fixed**2).sum(axis=1) + 0.3 * np.sqrt(n)), rtol=1e-12)
        np.testing.assert_allclose(bias_rate, 0.5 / (n + 0.7), rtol=1e-12)


def test_a_weight_is_a_number_of_observations_to_biases_and_spectrum():
    counts = np.random.default_rng(5).integers(0, 4, size=(12, 9))
    _, seen = low_rank(12, 9, 2, share=1.0)
    observations = weighted(Observations.read(seen), counts)
    mean = np.repeat(seen, counts.ravel()).mean()
    biases = Biases.fit(observations, "bias", 20.0)
    row, column = biases_by_least_squares(seen - mean, counts, 20.0)
    assert biases.mean == pytest.approx(mean)
    np.testing.assert_allclose(biases.row, row, atol=1e-5)  # ten sweeps
    np.testing.assert_allclose(biases.column, column, atol=1e-5)
    spectrum = Spectrum.of(observations, 3, np.random.RandomState(0))
    roots = np.outer(counts.sum(axis=1), counts.sum(axis=0)) ** 0.25
    values = np.linalg.svd(counts * seen / roots)[1]
    np.testing.assert_allclose(spectrum.values, values[:3], rtol=1e-6)
    assert spectrum.level == pytest.approx(values[0] / np.mean(counts > 0))  # entries, of all rows and columns


@pytest.mark.parametrize("center", ["none", "bias"])
def test_the_losses_are_the_weighted_objective_over_the_sum_of_weights(center):
    weights = drawn(*SEEN.shape)
    model = fitted(SEEN, weights, early_stopping=False, center=center)
    tensors = [torch.from_numpy(one) for one in model._factors.arrays()]
    target, mask = torch.from_numpy(np.nan_to_num(SEEN - model.mean_)), torch.from_numpy(~np.isnan(SEEN))
    at_rest = deep_objective(tensors, target, mask, *model._penalty, torch.from_numpy(weights)).item()
    # It is written down before every step, and the last of them gains less than tol = 1e-4.
    assert model.loss_curve_[-1] == pytest.approx(at_rest / weights[~np.isnan(SEEN)].sum(), rel=2e-4)


def test_the_validation_error_is_weighted():
    _, seen = low_rank(40, 30, 2, noise=0.3)
    weights = drawn(*seen.shape)
    observations = weighted(Observations.read(seen), weights)
    chosen = np.random.default_rng(3).random(len(observations)) < 0.2
    held_out, own = observations.select(chosen), weights[~np.isnan(seen)][chosen]
    settings = {"rank": 3, "depth": 3, "init_scale": 0.8, "discrepant_ratio": 20.0, "regularization": 0.5}
    random_state = np.random.RandomState(0)
    start = Start.of(observations.select(~chosen), center="none", random_state=random_state, **settings)
    told = start.apply(held_out)
    fit = fit_by_validation(start.objective, start.factors, told, 0.5, start.penalty, 1e-4, 1000)
    for error, factors in ((fit.errors[0], start.factors), (min(fit.errors), fit.factors)):
        squares = (factors.at(told.rows, told.columns) - told.values) ** 2
        assert error == pytest.approx(np.sqrt(np.average(squares, weights=own)), rel=1e-12)


# --- truth


def test_entries_with_large_errors_are_told_from_those_with_small_ones():
    truth, _ = low_rank(80, 60, 2)
    generator = np.random.default_rng(1)
    errors = np.where(generator.random(truth.shape) < 0.5, 0.1, 2.0)
    seen = np.where(generator.random(truth.shape) < 0.6, truth + errors * generator.normal(size=truth.shape), np.nan)
    with_weights, without = (fitted(seen, one, center="none") for one in (errors**-2.0, None))
    assert relative_error(with_weights, truth, seen) < 0.3 * relative_error(without, truth, seen)


# --- what may not matter


@pytest.mark.parametrize("form", ["rows", "list", "dense", "sparse"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_of_one_change_nothing(form, dtype):
    seen = SEEN.astype(dtype)
    ones = {"rows": np.ones(40), "list": [1] * 40, "dense": np.ones(SEEN.shape), "sparse": as_sparse(0 * SEEN + 1)}
    assert_same_fit(fitted(seen, ones[form]), fitted(seen))


@pytest.mark.parametrize("center", ["none", "mean"])
@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e4, 1e8])
@pytest.mark.parametrize("ones", [False, True], ids=["drawn", "all equal"])
def test_a_factor_of_all_weights_changes_nothing(factor, center, ones):
    weights = np.ones(SEEN.shape) if ones else drawn(*SEEN.shape)
    expected, got = (fitted(SEEN, one, center=center) for one in (weights, factor * weights))
    assert (got.n_iter_, got.regularization_) == (expected.n_iter_, expected.regularization_)
    np.testing.assert_allclose(got.complete(), expected.complete(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(got.validation_curve_, expected.validation_curve_, rtol=1e-9)
    np.testing.assert_allclose(got.loss_curve_, expected.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-5, 1e5])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_the_unit_of_values_and_of_their_errors_does_not_matter(unit, early_stopping):
    errors = drawn(*SEEN.shape) ** -0.5
    settings = {"center": "none", "early_stopping": early_stopping, "regularization": 0.1}
    expected, got = (fitted(one * SEEN, (one * errors) ** -2.0, **settings) for one in (1.0, unit))
    assert expected.rank_ == 2
    np.testing.assert_allclose(got.complete() / unit, expected.complete(), rtol=0, atol=1e-9)


def test_an_entry_of_weight_zero_is_not_observed():
    zeros = np.random.default_rng(2).random(SEEN.shape) < 0.3
    zeros[5] = True  # a whole row
    weights = np.where(zeros, 0.0, drawn(*SEEN.shape))
    left = np.where(zeros, np.nan, SEEN)
    assert_same_fit(fitted(SEEN, weights), fitted(left, weights))
    assert_same_fit(fitted(SEEN, np.where(zeros, 0, 1)), fitted(left))


def test_every_form_of_weights_and_of_a_matrix_is_the_same():
    rows, weights = drawn(40), drawn(*SEEN.shape)
    kept = sparse.csr_array(as_sparse(np.where(np.isnan(SEEN), np.nan, weights)))
    hidden = np.where(np.isnan(SEEN), np.nan, weights)  # what stands where nothing was observed is not looked at
    expected = fitted(SEEN, weights)
    for seen, given in ((SEEN, kept), (as_sparse(SEEN), weights), (as_sparse(SEEN), kept.tocsc()), (SEEN, hidden)):
        assert_same_fit(fitted(seen, given), expected)
    assert_same_fit(fitted(SEEN, rows), fitted(SEEN, np.repeat(rows[:, None], 30, axis=1)))


def test_weights_survive_growth_files_and_huge_and_tiny_values():
    weights = drawn(*SEEN.shape)
    model = fitted(SEEN[:30], weights[:30], warm_start=True)
    model.fit(SEEN, sample_weight=weights)
    assert np.isfinite(model.complete()).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for one in (1e-30, 1e30):
            assert np.isfinite(fitted(SEEN, one * weights, max_iter=50).complete()).all()
            mixed = np.where(drawn(*SEEN.shape, seed=8) < 1, one * weights, weights)
            assert np.isfinite(fitted(SEEN, mixed, max_iter=50).complete()).all()


# --- scikit-learn


def test_weights_come_through_pipelines_and_fit_transform():
    weights = drawn(40)
    expected = DeepMatrixCompletion(random_state=0).fit_transform(SEEN, sample_weight=weights)
    model = DeepMatrixCompletion(random_state=0)
    named = make_pipeline(model).fit_transform(SEEN, deepmatrixcompletion__sample_weight=weights)
    np.testing.assert_array_equal(named, expected)
    assert not np.array_equal(expected, DeepMatrixCompletion(random_state=0).fit_transform(SEEN))
    with sklearn.config_context(enable_metadata_routing=True):
        model = DeepMatrixCompletion(random_state=0).set_fit_request(sample_weight=True)
        routed = make_pipeline(model).fit(SEEN, sample_weight=weights)
    np.testing.assert_array_equal(routed[0].components_, fitted(SEEN, weights).components_)


# --- refusals


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            np.ones(39),
            ValueError,
            r"sample_weight has shape \(39,\); needed is a weight for each of the 40 rows, or a m",
        ),
        (
            np.ones((30, 40)),
            ValueError,
            r"sample_weight has shape \(30, 40\); .* of shape \(40, 30\) with one for each",
        ),
        (1.0, ValueError, r"sample_weight has shape \(\)"),
        (np.zeros(40), ValueError, "sample_weight is zero for every entry; at least one needs a weight above 0"),
        (np.full(40, -1.0), ValueError, "must be finite and at least 0, got -1.0 for the entry at row 0, column"),
        (np.r_[np.ones(39), np.nan], ValueError, "must be finite and at least 0, got nan for the entry at row 39, col"),
        (np.r_[np.inf, np.ones(39)], ValueError, "got inf for the entry at row 0"),
        (["much"] * 40, TypeError, "sample_weight must be real numbers, got <U4"),
        (sparse.csr_array((40, 31)), ValueError, r"sample_weight has shape \(40, 31\), needed that of X, \(40, 30\)"),
        (
            as_sparse(np.where(np.arange(30) < 20, SEEN, np.nan)),
            ValueError,
            "no weight for the entry of X at row 0, col",
        ),
        (as_sparse(np.nan_to_num(SEEN)), ValueError, "stores a weight where X has no entry, at row 0, column"),
        (
            sparse.coo_array(([1.0, 2.0], ([3, 3], [4, 4])), shape=(40, 30)),
            ValueError,
            "sample_weight: .* stored twice",
        ),
        (sparse.csr_array(1j * np.ones((40, 30))), TypeError, "sample_weight: .* must be real"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        fitted(SEEN, weights)


@pytest.mark.parametrize("form", [np.asarray, as_sparse])
@pytest.mark.parametrize("weight", [1e300, 1e-60])
def test_a_weight_that_single_precision_does_not_hold_is_refused(form, weight):
    weights = np.ones(SEEN.shape)
    weights[3] = weight
    weights[np.isnan(SEEN)] = np.nan
    with pytest.raises(
        ValueError, match=rf"the range of float32, .* got {re.escape(str(weight))} for the entry at row 3"
    ):
        fitted(SEEN.astype(np.float32), form(weights))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_tiny_weight_below_zero_is_refused(dtype):
    with pytest.raises(ValueError, match="at least 0, got -1e-60 for the entry at row 0, column"):
        fitted(SEEN.astype(dtype), np.r_[-1e-60, np.ones(39)])
    zero = np.r_[-0.0, np.ones(39)]  # which is none
    assert_same_fit(fitted(SEEN, zero), fitted(SEEN, np.abs(zero)))
