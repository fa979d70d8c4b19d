"""What DeepMatrixCompletion refuses, and input at the edge that it does not."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from lowdyn import DeepMatrixCompletion
from tests.partial_fits import fitted, low_rank

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


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


@pytest.mark.parametrize("name", ["early_stopping", "warm_start"])
@pytest.mark.parametrize("value", ["yes", "no", 1, None])
def test_what_is_yes_or_no_is_true_or_false(name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got {value!r}"):
        DeepMatrixCompletion(**{name: value}).fit(np.ones((4, 3)))


@pytest.mark.parametrize("flag", [True, False])
def test_the_bools_of_numpy_are_bools(flag):
    _, seen = low_rank(10, 8, 1)
    one, other = (fitted(seen, early_stopping=kind(flag), warm_start=kind(flag)) for kind in (bool, np.bool_))
    np.testing.assert_array_equal(one.complete(), other.complete())


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
