"""DeepMatrixCompletion against slow twins: gradients, rates, biases, new rows and spectra."""

import numpy as np
import pytest
import torch

from lowdyn import DeepMatrixCompletion
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.objective import Factors, Objective, Penalty
from lowdyn.recovery.observations import Observations
from lowdyn.recovery.spectrum import Spectrum
from tests.oracles_recovery import biases_by_least_squares, deep_objective, rows_by_least_squares
from tests.partial_fits import as_sparse, fitted, low_rank

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_gradient_is_that_of_the_dense_objective(depth, dtype):
    generator = np.random.default_rng(2)
    _, seen = low_rank(17, 11, 3)
    seen[4], seen[:, 3] = np.nan, np.nan  # a row and a column without entries
    observations = Observations.read(seen.astype(dtype))
    shapes = [(17, 4), (11, 4), (17,), (11,), *[(4, 4)] * (depth - 2)]
    arrays = [generator.normal(size=shape).astype(dtype) for shape in shapes]
    objective = Objective(observations, 4, discrepant_ratio=2.0, trained_biases=True)
    loss, gradients, rates = objective.gradient(Factors.of(arrays), Penalty(0.3, 0.7))
    tensors = [torch.from_numpy(one.astype(np.float64)).requires_grad_() for one in arrays]
    target, mask = torch.from_numpy(np.nan_to_num(seen)), torch.from_numpy(~np.isnan(seen))
    expected = deep_objective(tensors, target, mask, 0.3, 0.7)
    expected.backward()
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    for gradient, tensor, rate in zip(gradients, tensors, rates, strict=True):
        assert gradient.dtype == rate.dtype == dtype
        scale = float(tensor.grad.abs().max())
        np.testing.assert_allclose(gradient, tensor.grad, atol=tolerance * scale, rtol=0)
        assert (rate > 0).all()


def test_the_rate_of_a_row_is_safe_for_it():
    """One over the rate bounds the largest curvature of the objective in that row alone."""
    _, seen = low_rank(9, 7, 2)
    generator = np.random.default_rng(3)
    arrays = [generator.normal(size=shape) for shape in [(9, 3), (7, 3), (9,), (7,), (3, 3)]]
    objective = Objective(Observations.read(seen), 3, discrepant_ratio=1.0, trained_biases=True)
    _, _, rates = objective.gradient(Factors.of(arrays), Penalty(0.3, 0.7))
    mask = ~np.isnan(seen)
    for row in range(9):
        fixed = (arrays[1] @ arrays[4].T)[mask[row]]
        top = np.linalg.eigvalsh(fixed.T @ fixed + 0.3 * np.sqrt(mask[row].sum()) * np.eye(3))[-1]
        assert 1 / rates[0][row, 0] >= top


def test_biases_are_those_of_one_ridge_regression():
    _, seen = low_rank(12, 9, 2)
    seen[3], seen[:, 5] = np.nan, np.nan
    biases = Biases.fit(Observations.read(seen), "bias", 4.0)
    mean = np.nanmean(seen)
    row, column = biases_by_least_squares(seen - mean, ~np.isnan(seen), 4.0)
    assert biases.mean == pytest.approx(mean)
    np.testing.assert_allclose(biases.row, row, atol=1e-5)  # ten sweeps
    np.testing.assert_allclose(biases.column, column, atol=1e-5)
    assert biases.row[3] == biases.column[5] == 0


@pytest.mark.parametrize("center", ["bias", "none"])
def test_new_rows_are_a_ridge_regression_on_fixed_columns(center):
    _, seen = low_rank(60, 40, 3, noise=0.1)
    model = fitted(seen, center=center)
    new = low_rank(7, 40, 3, seed=5)[1]
    new[2] = np.nan
    factors, (decay, ridge) = model._factors, model._penalty
    ridge = ridge if center == "bias" else 1e12
    rest = np.nan_to_num(new - model.mean_ - model.column_bias_)
    left = rows_by_least_squares(rest, ~np.isnan(new), factors.right @ factors.core.T, decay, ridge)
    products = left @ factors.core @ factors.right.T
    np.testing.assert_allclose(model.transform(new) @ model.components_, products, atol=1e-8)
    np.testing.assert_array_equal(model.transform(new)[2], 0)
    np.testing.assert_array_equal(model.transform(as_sparse(new)), model.transform(new))


def test_coordinates_times_components_is_the_product_without_biases():
    _, seen = low_rank(50, 40, 3, noise=0.1)
    model = DeepMatrixCompletion(random_state=0)
    coordinates = model.fit_transform(seen)
    product = model.complete(clip=False) - model.mean_ - model.row_bias_[:, None] - model.column_bias_
    np.testing.assert_allclose(coordinates @ model.components_, product, atol=1e-10)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(10), atol=1e-10)
    np.testing.assert_allclose(np.linalg.svd(product)[1][:10], model.singular_values_, atol=1e-10)
    again = model.transform(seen)
    assert not np.allclose(again, coordinates, atol=1e-12)  # another estimate,
    np.testing.assert_allclose(again, coordinates, atol=0.05 * np.abs(coordinates).max())  # of the same thing


def test_the_spectrum_and_its_noise():
    """D_r^(-¼) R D_c^(-¼) has the singular values of the dense matrix; random signs leave about √m + √n."""
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(200, 100))
    spectrum = Spectrum.of(Observations.read(dense), 5, np.random.RandomState(0))
    scaled = dense / (200 * 100) ** 0.25
    np.testing.assert_allclose(spectrum.values, np.linalg.svd(scaled)[1][:5], rtol=0.04)  # the spectrum is flat
    assert spectrum.edge == pytest.approx((np.sqrt(200) + np.sqrt(100)) / (200 * 100) ** 0.25, rel=0.05)
    assert spectrum.level == spectrum.values[0]
