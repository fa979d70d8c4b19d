"""Neural collapse, rank and linear probe of features, against formulas that hold every matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lowdyn import LayerMetrics, Tracker, layer_metrics
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from tests import oracles_features
from tests.cases import gaussian, seeded
from tests.clusters import clusters, look_through

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def classifier(weight):
    """A model that is its classifier: features are the inputs."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data = weight.clone()
    return layer


def cut(features, labels, size):
    return list(zip(features.split(size), labels.split(size), strict=True))


# --- exact answers


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_simplex_has_collapsed(classes):
    """Points at e_k, classified by their own means: all four measures are zero."""
    x, labels = torch.eye(classes, dtype=torch.float64).repeat(3, 1), torch.arange(classes).repeat(3)
    means = torch.eye(classes, dtype=torch.float64) - 1 / classes
    metrics = layer_metrics(classifier(means), [(x, labels)], classes, collapse=True)
    assert metrics["layer"].values.tolist() == ["input", "self.input", "self"]
    at = metrics.sel(layer="self.input")
    for name in ("nc1", "nc2", "nc3", "nc4"):
        np.testing.assert_allclose(at[name], 0.0, atol=1e-14)
    # An opposite classifier is as far from the means as can be, and right nowhere.
    opposite = layer_metrics(classifier(-means), [(x, labels)], classes, collapse=True).sel(layer="self.input")
    np.testing.assert_allclose(opposite["nc3"], 2.0, rtol=1e-15)
    assert opposite["nc4"] == 1.0


def test_two_points_and_two_points():
    # Σ_W = I/2, one direction between the classes of tr Σ_B = 7.25: NC1 = (1/2)/7.25/2. Two means are always a simplex.
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [6.0, 0.0]], dtype=torch.float64)
    metrics = layer_metrics(look_through(2), [(x, torch.tensor([0, 0, 1, 1]))], 2, collapse=True)
    np.testing.assert_allclose(metrics["nc1"], 0.25 / 7.25, rtol=1e-14)
    np.testing.assert_allclose(metrics["nc2"], 0.0, atol=1e-15)


def test_a_plane_has_rank_two():
    x = gaussian(20, 2) @ gaussian(2, 6, seed=1)
    metrics = layer_metrics(look_through(6), [(x, torch.arange(20) % 2)], 2, rank_tolerance=1e-6)
    assert metrics["numerical_rank"].values.tolist() == [2.0, 2.0]


# --- the twins

HARD = {
    "easy": {},
    "tight": {"spread": 1e-4},
    "offset": {"offset": 100.0},
    "two classes": {"counts": (8, 8)},
    "unbalanced": {"counts": (2, 40, 7, 1)},
    "narrower than the classes": {"counts": (6, 7, 8, 9, 10), "width": 3},
}


@pytest.mark.parametrize("settings", HARD.values(), ids=HARD)
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("size", [3, 1000])
def test_collapse_is_that_of_the_formulas(settings, balanced, size):
    features, labels = clusters(**settings)
    order = torch.randperm(len(labels), generator=seeded())
    features, labels = features[order], labels[order]
    classes = int(labels.max()) + 1
    weight = gaussian(classes, features.shape[1], seed=5)
    metrics = layer_metrics(
        classifier(weight), cut(features, labels, size), classes, balanced=balanced, collapse=True
    ).sel(layer="self.input")
    answers = (features @ weight.T).argmax(dim=1)
    expected = oracles_features.collapse(features, labels, balanced=balanced, weight=weight, answers=answers)
    for name, value in expected.items():
        # The twin's pseudo-inverse squares the condition number of the means.
        np.testing.assert_allclose(metrics[name], value, rtol=1e-8, atol=1e-12, err_msg=name)


@given(
    counts=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    width=st.integers(4, 7),
    size=st.integers(1, 20),
    balanced=st.booleans(),
)
def test_collapse_does_not_depend_on_how_the_stream_is_cut(counts, width, size, balanced):
    features, labels = clusters(counts=counts, width=width)
    metrics = layer_metrics(
        look_through(width), cut(features, labels, size), len(counts), balanced=balanced, collapse=True
    )
    expected = oracles_features.collapse(features, labels, balanced=balanced)
    for name in ("nc1", "nc2"):
        np.testing.assert_allclose(metrics[name].sel(layer="W1"), expected[name], rtol=1e-7, atol=1e-12)


def test_rotation_scale_and_offset_leave_collapse_alone():
    features, labels = clusters()
    moved = 3 * features @ random_orthogonal(5, 5, generator=seeded()) + 7
    first, second = (layer_metrics(look_through(5), [(x, labels)], 3, collapse=True) for x in (features, moved))
    for name in ("nc1", "nc2"):
        np.testing.assert_allclose(second[name], first[name], rtol=1e-11)


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_rank_is_that_of_the_matrix(offset, tolerance):
    # Singular values from 1 down to 1e-8, none near a tolerance.
    falling = torch.diag(torch.logspace(0, -8, 17, dtype=torch.float64)[1::2])
    features = gaussian(40, 8) @ falling @ random_orthogonal(8, 8, generator=seeded()) + offset
    labels = torch.arange(40) % 2
    metrics = layer_metrics(look_through(8), cut(features, labels, 7), 2, rank_tolerance=tolerance)
    assert metrics["numerical_rank"].sel(layer="W1") == oracles_features.rank(features, tolerance)


@pytest.mark.parametrize("samples", [200, 12])  # fewer samples than numbers each, too
def test_the_linear_probe_is_ridge_regression(samples):
    centres = gaussian(4, 20)
    labels = torch.randint(4, (samples,), generator=seeded(2)) if samples > 100 else torch.arange(samples) % 4
    features = centres[labels] + 2 * gaussian(samples, 20, seed=3) + 5
    truth = torch.randint(4, (500,), generator=seeded(4))
    tested = centres[truth] + 2 * gaussian(500, 20, seed=6) + 5
    metrics = layer_metrics(look_through(20), cut(features, labels, 9), 4, probe=cut(tested, truth, 100))
    expected = oracles_features.probe_accuracy(features, labels, tested, truth)
    assert 0.5 < expected < 1.0
    np.testing.assert_allclose(metrics["probe_accuracy"], expected, rtol=1e-12)
    same = layer_metrics(look_through(20), cut(features, labels, 9), 4, probe=[(features, labels)])
    np.testing.assert_allclose(
        same["probe_accuracy"], oracles_features.probe_accuracy(features, labels, features, labels), rtol=1e-12
    )


def test_features_too_wide_for_a_covariance_are_left_out(monkeypatch):
    monkeypatch.setattr("lowdyn.observe.passes.WIDEST", 5)
    model = MLP((6, 5, 3), generator=seeded())
    x, labels = clusters(width=6)
    metrics = layer_metrics(model, [(x, labels)], 3, rank_tolerance=1e-3, probe=[(x, labels)])
    for name in ("numerical_rank", "probe_accuracy"):
        assert np.isnan(metrics[name]).values.tolist() == [True, False, False]


# --- which layer, which samples


def test_the_classifier_is_compared_with_its_own_input():
    model = MLP((6, 5, 5, 3), generator=seeded()).double()
    x, labels = clusters(width=6)
    metrics = layer_metrics(model, [(x, labels)], 3, "relu", collapse=True)
    assert metrics["layer"].values.tolist() == ["input", "relu1", "relu2", "output.input"]
    assert np.isnan(metrics["nc3"]).values.tolist() == [True, True, True, False]
    for name in ("nc1", "nc2", "nc4"):
        assert metrics[name].sel(layer="relu2") == metrics[name].sel(layer="output.input")


def test_without_a_classifier_there_is_nothing_to_align():
    x, labels = clusters()
    metrics = layer_metrics(look_through(5), [(x, labels)], 3, collapse=True)
    assert metrics["layer"].values.tolist() == ["input", "W1"]
    assert np.isnan(metrics["nc3"]).all()
    assert np.isnan(metrics["nc4"]).all()
    assert np.isfinite(metrics["nc1"]).all()


class Noisy(Dataset):
    """Features that differ every time they are asked for, as augmented images do."""

    def __init__(self):
        self.features, self.labels = clusters()
        self.generator = seeded(9)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = torch.randn(5, generator=self.generator, dtype=torch.float64)
        return self.features[index] + noise, self.labels[index]


def test_other_samples_in_the_second_pass_are_refused():
    features, labels = clusters()
    with pytest.raises(ValueError, match=r"second gave other samples: 0 after 27.* pass a list or a DataLoader"):
        layer_metrics(look_through(5), iter([(features, labels)]), 3, collapse=True)
    with pytest.raises(
        ValueError, match=r"27 after 27, class means of 'input' moved by .* without random augmentation"
    ):
        layer_metrics(look_through(5), DataLoader(Noisy(), batch_size=9), 3, collapse=True)


@pytest.mark.parametrize("tolerance", [0.0, 1e-9, 1.0])
def test_a_tolerance_that_a_gram_matrix_cannot_tell_is_refused(tolerance):
    with pytest.raises(ValueError, match="rank_tolerance must be"):
        layer_metrics(look_through(5), [clusters()], 3, rank_tolerance=tolerance)


def test_a_probe_without_samples_is_refused():
    with pytest.raises(ValueError, match="the loader of the linear probe gave no sample"):
        layer_metrics(look_through(5), [clusters()], 3, probe=[])


def test_the_probe_object_takes_the_same_arguments():
    model, batch = MLP((5, 4, 3), generator=seeded()).double(), clusters()
    asked = {"collapse": True, "rank_tolerance": 1e-3, "probe": [batch]}
    tracker = Tracker(model, LayerMetrics([batch], 3, "relu", **asked))
    expected = layer_metrics(model, [batch], 3, "relu", **asked)
    assert tracker.trajectory["features"].values.tolist() == expected["layer"].values.tolist()
    for name in expected:
        np.testing.assert_array_equal(tracker.trajectory[name].isel(step=0), expected[name])
