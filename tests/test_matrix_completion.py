"""DeepMatrixCompletion: matrices it must recover, slow twins, what may not change a fit, and what it refuses."""

import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from lowdyn import DeepMatrixCompletion
from lowdyn.data import load_ratings
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.objective import Factors, Objective, Penalty
from lowdyn.recovery.observations import Observations
from lowdyn.recovery.spectrum import Spectrum
from tests.oracles_recovery import biases_by_least_squares, deep_objective, rows_by_least_squares

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def low_rank(rows, columns, rank, *, seed=0, noise=0.0, share=0.5):
    """A matrix and what is seen of it, dense with NaN."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, columns))
    seen = generator.random(truth.shape) < share
    return truth, np.where(seen, truth + noise * generator.normal(size=truth.shape), np.nan)


def as_sparse(dense, kind=sparse.coo_array):
    rows, columns = np.nonzero(~np.isnan(dense))
    return kind((dense[rows, columns], (rows, columns)), shape=dense.shape)


def relative_error(model, truth, seen):
    unseen = np.isnan(seen)
    return np.linalg.norm((model.complete(clip=False) - truth)[unseen]) / np.linalg.norm(truth[unseen])


def fitted(seen, **parameters):
    return DeepMatrixCompletion(**{"random_state": 0, **parameters}).fit(seen)


# --- truth


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_matrix_of_low_rank_is_recovered_and_its_rank_is_found(depth):
    truth, seen = low_rank(80, 60, 2)
    model = fitted(seen, depth=depth, center="none")
    assert relative_error(model, truth, seen) < 1e-3
    assert model.rank_ == 2  # of the ten allowed
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


# --- twins


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


# --- predictions


def test_unseen_indices_fall_back_to_biases():
    _, seen = low_rank(30, 20, 2, noise=0.3)
    model = fitted(seen)
    estimates = model.predict_entries([30, 5, 99], [3, 20, 99], clip=False)
    expected = [model.mean_ + model.column_bias_[3], model.mean_ + model.row_bias_[5], model.mean_]
    np.testing.assert_allclose(estimates, expected)
    assert model.predict_entries([], []).shape == (0,)
    np.testing.assert_allclose(model.predict_entries(2, 3), model.complete()[2, 3])


def test_estimates_are_clipped_to_what_was_observed():
    truth, seen = low_rank(60, 40, 2, noise=0.1)
    model = fitted(seen)
    rows, columns = np.indices(truth.shape).reshape(2, -1)
    free, clipped = (model.predict_entries(rows, columns, clip=clip) for clip in (False, True))
    low, high = np.nanmin(seen), np.nanmax(seen)
    assert free.max() > high
    np.testing.assert_array_equal(clipped, np.clip(free, low, high))
    np.testing.assert_allclose(model.complete().ravel(), clipped)
    np.testing.assert_allclose(model.complete(clip=False).ravel(), free)


def test_recommendations_are_the_best_unseen_columns():
    _, seen = low_rank(60, 40, 2, noise=0.1)
    model = fitted(seen)
    columns, estimates = model.recommend(4, n=5)
    row = model.complete(clip=False)[4]
    unseen = np.flatnonzero(np.isnan(seen[4]))
    np.testing.assert_array_equal(columns, unseen[np.argsort(-row[unseen])][:5])
    np.testing.assert_allclose(estimates, row[columns])
    everything, _ = model.recommend(4, n=100, unseen_only=False)
    np.testing.assert_array_equal(everything, np.argsort(-row))
    assert len(model.recommend(4, n=100)[0]) == len(unseen)
    np.testing.assert_array_equal(model.recommend(77, n=20)[0], np.argsort(-model.column_bias_, kind="stable")[:20])


# --- stopping, going on, saving


def test_curves_belong_to_the_fit():
    _, seen = low_rank(60, 40, 2, noise=0.3)
    model = fitted(seen)
    assert len(model.loss_curve_) == model.n_iter_ <= len(model.validation_curve_) - 1
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert model.validation_curve_.argmin() >= model.n_iter_ - 1  # halved decay goes on from the best so far
    without = fitted(seen, early_stopping=False)
    assert without.validation_curve_.size == 0
    assert without.n_iter_ < 500
    assert (np.diff(without.loss_curve_[-20:]) <= 1e-3 * without.loss_curve_[-1]).all()


@pytest.mark.parametrize("early_stopping", [True, False])
def test_every_iteration_can_be_watched_and_is_not_changed_by_it(early_stopping):
    _, seen = low_rank(40, 30, 2, noise=0.3)
    watched, options = [], {"random_state": 0, "early_stopping": early_stopping}
    model = DeepMatrixCompletion(**options).fit(7 * seen, on_iteration=lambda *one: watched.append(one))
    trial = len(model.validation_curve_[1:])
    assert [count for count, _ in watched] == [*range(1, trial + 1), *range(1, model.n_iter_ + 1)]
    np.testing.assert_array_equal([error for _, error in watched[:trial]], model.validation_curve_[1:])
    assert all(np.isnan(error) for _, error in watched[trial:])
    np.testing.assert_array_equal(model.complete(), DeepMatrixCompletion(**options).fit(7 * seen).complete())


def test_regularization_is_a_ceiling_that_the_validation_share_lowers():
    truth, seen = low_rank(80, 60, 2)
    kept, lowered = (fitted(seen, early_stopping=stopping, center="none") for stopping in (False, True))
    assert relative_error(kept, truth, seen) > 10 * relative_error(lowered, truth, seen)
    assert lowered.regularization_ < kept.regularization_ == 0.5
    strong = fitted(seen, early_stopping=False, regularization=5.0, center="none")
    assert strong.singular_values_[0] < 0.01 * kept.singular_values_[0]


def test_max_iter_is_kept_and_said():
    _, seen = low_rank(60, 40, 2)
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        model = fitted(seen, max_iter=3)
    assert len(model.validation_curve_) == 4


def test_a_warm_start_goes_on_from_the_last_fit_with_rows_and_columns_added():
    truth, seen = low_rank(60, 40, 2, noise=0.1)
    model = fitted(seen[:50, :35], warm_start=True)
    first = model.n_iter_
    model.fit(seen)
    assert model.validation_curve_.size == 0
    assert relative_error(model, truth, seen) < 0.15
    calm = fitted(seen, early_stopping=False, warm_start=True)
    calm.fit(seen)
    assert calm.n_iter_ < first + 20  # it was at rest
    with pytest.raises(ValueError, match=r"the last fit was 60 x 40 with rank 10 and depth 3, this one is 50 x 35"):
        model.fit(seen[:50, :35])
    with pytest.raises(ValueError, match="depth must stay"):
        model.set_params(depth=2).fit(seen)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_saved_model_is_the_same_model(tmp_path, depth):
    _, seen = low_rank(60, 40, 2, noise=0.1)
    model = fitted(seen, depth=depth)
    model.save(tmp_path / "model.safetensors")
    loaded = DeepMatrixCompletion.load(str(tmp_path / "model.safetensors"))
    assert loaded.get_params() == model.get_params()
    for name in ("n_iter_", "rank_", "regularization_", "mean_", "n_features_in_"):
        assert getattr(loaded, name) == getattr(model, name)
    for name in ("loss_curve_", "validation_curve_", "singular_values_", "components_", "row_bias_", "column_bias_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    np.testing.assert_array_equal(loaded.complete(), model.complete())
    np.testing.assert_array_equal(loaded.transform(seen), model.transform(seen))
    np.testing.assert_array_equal(loaded.recommend(3)[0], model.recommend(3)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_only_files_of_its_own_are_loaded(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError):
        DeepMatrixCompletion.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"is not a model that DeepMatrixCompletion\.save wrote"):
        DeepMatrixCompletion.load(path)
    save_file({"a": np.zeros(2)}, path, metadata={"parameters": json.dumps({})})
    with pytest.raises(ValueError, match="its format is None"):
        DeepMatrixCompletion.load(path)


# --- refusals


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": -3}, "rank must be at least 1"),
        ({"depth": 1}, "depth must be at least 2, got 1"),
        ({"center": "median"}, "center must be one of 'bias', 'mean', 'none'"),
        ({"init_scale": 0.0}, "init_scale must be above 0"),
        ({"discrepant_ratio": -1.0}, "discrepant_ratio must be above 0"),
        ({"regularization": -0.1}, "regularization must be at least 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be below 1"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"tol": np.nan}, "tol must be finite"),
    ],
)
def test_parameters_are_checked_when_fitted(parameters, message):
    model = DeepMatrixCompletion(**parameters)  # a constructor only stores
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(ValueError, match=message):
        model.fit(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.full((4, 3), np.nan), r"X of shape \(4, 3\) has no observed entries"),
        (sparse.csr_array((4, 3)), "no observed entries"),
        (np.array([[1.0, np.inf], [2.0, 3.0]]), "infinity"),
        (sparse.csr_array(np.array([[1.0, -np.inf], [2.0, 3.0]])), "row 0, column 1 is -inf"),
        (sparse.csr_array(np.array([[1.0, 2.0], [np.nan, 3.0]])), "row 1, column 0 is nan; leave unknown ones out"),
        (sparse.coo_array(([1.0, 2.0, 3.0, 4.0], ([0, 1, 1, 0], [1, 0, 0, 1]))), "row 1, column 0 is stored twice"),
        (sparse.csr_array(([1.0, 2.0], [2, 2], [0, 2, 2]), shape=(2, 3)), "row 0, column 2 is stored twice"),
        (np.ones(4), "2D array"),
    ],
)
def test_bad_input_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        fitted(matrix)


@pytest.mark.parametrize("place", [-1, 7])
def test_indices_out_of_range_are_refused_before_compiled_code_sees_them(place):
    matrix = sparse.csr_array(np.ones((3, 4)))
    matrix.indices[5] = place
    with pytest.raises(ValueError, match=f"column index {place} "):
        fitted(matrix)


def test_indices_to_predict_are_checked():
    model = fitted(low_rank(10, 8, 1)[1])
    with pytest.raises(ValueError, match="rows must not be negative, got -1 at position 1"):
        model.predict_entries([0, -1], [0, 0])
    with pytest.raises(TypeError, match="columns must be whole numbers"):
        model.predict_entries([0], [0.5])
    with pytest.raises(ValueError, match="got 2 and 1"):
        model.predict_entries([0, 1], [0])
    with pytest.raises(ValueError, match="row must be at least 0"):
        model.recommend(-1)


@pytest.mark.parametrize(
    "method", [lambda m: m.complete(), lambda m: m.transform(np.ones((2, 2))), lambda m: m.predict_entries([0], [0])]
)
def test_nothing_is_predicted_before_a_fit(method):
    with pytest.raises(NotFittedError):
        method(DeepMatrixCompletion())


def test_a_rank_above_the_smaller_side_is_clipped():
    _, seen = low_rank(20, 4, 3, share=0.8)
    model = fitted(seen, rank=50)
    assert model.rank_ <= 4
    assert model.singular_values_.shape == (4,)
    assert model.fit_transform(seen).shape == (20, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (3, 4)])
@pytest.mark.parametrize("depth", [2, 3])
def test_one_rating_is_enough(shape, depth):
    seen = np.full(shape, np.nan)
    seen[-1, -1] = 4.0
    model = fitted(seen, depth=depth)
    np.testing.assert_allclose(model.complete(), 4.0)
    assert model.rank_ == 0


@pytest.mark.parametrize("values", ["heavy tails", "one large", "huge counts", "two levels"])
@pytest.mark.parametrize("depth", [2, 3])
def test_descent_never_diverges(values, depth):
    generator = np.random.default_rng(0)
    seen = generator.normal(size=(40, 30))
    if values == "heavy tails":
        seen = generator.standard_cauchy(size=(40, 30))
    elif values == "one large":
        seen[3, 4] = 1e9
    elif values == "two levels":
        seen = np.sign(seen)
    mask = generator.random(seen.shape) < (0.05 if values == "huge counts" else 0.4)
    if values == "huge counts":
        mask[0], mask[:, 0] = True, True  # one row and one column full, the others nearly empty
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for early_stopping in (True, False):
            model = fitted(np.where(mask, seen, np.nan), depth=depth, early_stopping=early_stopping, regularization=0.1)
            assert np.isfinite(model.complete(clip=False)).all()
            assert model.loss_curve_.size == 0 or model.loss_curve_[-1] <= model.loss_curve_[0]
