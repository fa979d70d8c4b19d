"""A fitted DeepMatrixCompletion: what it predicts, how it stopped, goes on and is saved."""

import json

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from lowdyn import DeepMatrixCompletion
from tests.partial_fits import fitted, low_rank, relative_error

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


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
