"""DeepMatrixCompletion against scikit-learn's own tests, some of which draw from the global generator."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowdyn import DeepMatrixCompletion

NOT_THE_SAME = (
    "fit_transform returns the coordinates that were trained together with the columns, transform those of each row "
    "alone on fixed columns; they are close, and documented as different"
)
MORE_THAN_ROWS = "a matrix of X's shape is taken for the weights of the entries, which are what a completion weighs"
ROWS_OF_THEIR_OWN = (
    "a row of weight two has entries that were observed twice, one set of coordinates; two rows have two, other "
    "entries are held out"
)
EXPECTED_FAILURES = {
    "check_transformer_general": NOT_THE_SAME,
    "check_transformer_data_not_an_array": NOT_THE_SAME,
    "check_sample_weights_shape": MORE_THAN_ROWS,
    "check_sample_weight_equivalence_on_dense_data": ROWS_OF_THEIR_OWN,
    "check_sample_weight_equivalence_on_sparse_data": ROWS_OF_THEIR_OWN,
}


@parametrize_with_checks(
    [DeepMatrixCompletion(random_state=0), DeepMatrixCompletion(depth=2, center="none", random_state=0)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        # The tests' matrices of noise in two or three columns leave nothing to stop at.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Some of the checks are not for estimators without y, or need an array API that is switched off.
        warnings.filterwarnings("ignore", category=UserWarning, message=".*SCIPY_ARRAY_API.*")
        check(estimator)


def test_features_are_named_as_many_as_coordinates_and_frames_keep_their_index():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(9, 4)), index=list("abcdefghi"), columns=list("wxyz"))
    frame.iloc[2, 1] = np.nan
    model = DeepMatrixCompletion(rank=3, random_state=0).set_output(transform="pandas")
    names = [f"deepmatrixcompletion{place}" for place in range(3)]
    trained = model.fit_transform(frame)
    for out in (trained, model.transform(frame)):
        assert out.columns.tolist() == model.get_feature_names_out().tolist() == names
        assert out.index.tolist() == frame.index.tolist()
    np.testing.assert_array_equal(trained, DeepMatrixCompletion(rank=3, random_state=0).fit_transform(frame))
    assert len(DeepMatrixCompletion(rank=9, random_state=0).fit(frame).get_feature_names_out()) == 4  # clipped


def test_a_loaded_model_names_its_features_and_one_without_a_fit_has_none(tmp_path):
    model = DeepMatrixCompletion(rank=2, random_state=0).fit(np.random.default_rng(0).normal(size=(9, 4)))
    model.save(tmp_path / "model")
    loaded = DeepMatrixCompletion.load(tmp_path / "model")
    assert loaded.get_feature_names_out().tolist() == model.get_feature_names_out().tolist()
    with pytest.raises(NotFittedError):
        DeepMatrixCompletion().get_feature_names_out()
