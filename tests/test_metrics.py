"""Metrics of layers: exact answers, the twin of two passes in extended precision, and invariances."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import layer_metrics
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.observe import ClassMoments
from tests.cases import seeded
from tests.clusters import assert_statistics, clusters, look_through

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- exact answers


def test_two_points_and_two_points():
    # Means (0, 2) and (5, 0), global (2.5, 1); tr Σ_W = (1 + 1)/2, tr Σ_B = 2.5² + 1². Two centred means are opposite.
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [6.0, 0.0]], dtype=torch.float64)
    metrics = layer_metrics(look_through(2), [(x, torch.tensor([0, 0, 1, 1]))], 2)
    assert metrics["layer"].values.tolist() == ["input", "W1"]
    for name, expected in {
        "within": 1.0,
        "between": 7.25,
        "within_between_ratio": 1 / 7.25,
        "class_separation": 0.0,
        "class_discrimination": 1.0,
    }.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-15, atol=4e-16)
    assert metrics.attrs == {"num_classes": 2, "samples": 4, "weighting": "class"}


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_simplex_reaches_the_ceilings(classes):
    # Classes of one point e_k each: D = 0, S = 1 − 1/(K − 1) and discrimination 1, the largest values there are.
    x = torch.eye(classes, dtype=torch.float64).repeat(2, 1)
    metrics = layer_metrics(look_through(classes), [(x, torch.arange(classes).repeat(2))], classes)
    np.testing.assert_array_equal(metrics["within_between_ratio"], 0.0)
    np.testing.assert_allclose(metrics["class_separation"], 1 - 1 / (classes - 1), atol=1e-15)
    np.testing.assert_allclose(metrics["class_discrimination"], 1.0, atol=1e-15)


def test_balanced_or_by_frequency():
    # Three at ±1 around 0 (spread 2/3), one at 4. By class: mean 2, by frequency: mean 1.
    x, labels = torch.tensor([[-1.0], [0.0], [1.0], [4.0]], dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    for balanced, within, between in ((True, 1 / 3, 4.0), (False, 1 / 2, 3.0)):
        metrics = layer_metrics(look_through(1), [(x, labels)], 2, balanced=balanced)
        np.testing.assert_allclose(metrics["within"], within, rtol=1e-15)
        np.testing.assert_allclose(metrics["between"], between, rtol=1e-15)
        assert metrics.attrs["weighting"] == ("class" if balanced else "frequency")


# --- the twin

HARD = {
    "easy": {},
    "D = 1e-8": {"spread": 1e-4},
    "common offset of 1000": {"offset": 1e3},
    "both": {"spread": 1e-4, "offset": 1e3},
    "two classes": {"counts": (8, 8)},
    "unbalanced": {"counts": (2, 40, 7, 1)},
    "unbalanced, both": {"counts": (2, 40, 7, 1), "spread": 1e-4, "offset": 1e3},
}


@pytest.mark.parametrize("settings", HARD.values(), ids=HARD)
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("stream", ["whole", "class-sorted", "shuffled", "one by one"])
def test_metrics_are_those_of_two_exact_passes(settings, balanced, stream):
    features, labels = clusters(**settings)
    if stream in ("shuffled", "one by one"):
        order = torch.randperm(len(labels), generator=seeded())
        features, labels = features[order], labels[order]
    # Sorted and split by 4: most batches lack classes.
    size = {"whole": len(labels), "class-sorted": 4, "shuffled": 4, "one by one": 1}[stream]
    batches = list(zip(features.split(size), labels.split(size), strict=True))
    metrics = layer_metrics(look_through(5), batches, int(labels.max()) + 1, balanced=balanced)
    for layer in ("input", "W1"):
        assert_statistics(metrics, layer, features, labels, balanced=balanced)
    assert metrics.attrs["samples"] == len(labels)


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    width=st.integers(1, 6),
    size=st.integers(1, 30),
    power=st.integers(-6, 3),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    balanced=st.booleans(),
)
def test_metrics_do_not_depend_on_how_the_stream_is_cut(counts, width, size, power, offset, balanced):
    assume(max(counts) > 1)  # else there is nothing within a class
    features, labels = clusters(counts=counts, width=width, spread=10.0**power, offset=offset)
    batches = list(zip(features.split(size), labels.split(size), strict=True))
    metrics = layer_metrics(look_through(width), batches, len(counts), balanced=balanced)
    assert_statistics(metrics, "W1", features, labels, balanced=balanced)


def test_every_hidden_layer_of_a_float32_network():
    model = MLP((6, 8, 7, 3), generator=seeded())
    x, labels = clusters(width=6)
    batches = [(part.float(), label) for part, label in zip(x.split(4), labels.split(4), strict=True)]
    metrics = layer_metrics(model, batches, 3, layers=r"^(relu\d|output)$")
    assert metrics["layer"].values.tolist() == ["input", "relu1", "relu2", "output"]
    assert metrics["within"].dtype == np.float64
    with torch.no_grad():
        inputs = [part for part, _ in batches]
        first = [torch.relu(model.hidden1(part)) for part in inputs]
        second = [torch.relu(model.hidden2(part)) for part in first]
        features = {"input": inputs, "relu1": first, "relu2": second, "output": [model.output(p) for p in second]}
    for name, parts in features.items():
        assert_statistics(metrics, name, torch.cat(parts), labels)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_whole_type(dtype):
    features, labels = clusters()
    assert_statistics(layer_metrics(look_through(5), [(features, labels.to(dtype))], 3), "W1", features, labels)


def test_lists_and_arrays_are_batches_too():
    features, labels = clusters()
    expected = layer_metrics(look_through(5), [(features, labels)], 3)
    for batch in ((features.numpy(), labels.numpy()), (features.tolist(), labels.tolist())):
        # Nested lists become float32 on the way.
        seen = layer_metrics(look_through(5), [batch], 3)
        np.testing.assert_allclose(seen["within"], expected["within"], rtol=1e-6)


def test_a_generator_is_gone_through_once():
    features, labels = clusters()
    stream = ((features[part], labels[part]) for part in (slice(0, 10), slice(10, None)))
    assert_statistics(layer_metrics(look_through(5), stream, 3), "input", features, labels)


# --- invariances


def test_rotating_the_features_changes_nothing():
    features, labels = clusters()
    turned = features @ random_orthogonal(5, 5, generator=seeded())
    first, second = (layer_metrics(look_through(5), [(x, labels)], 3) for x in (features, turned))
    for name in first:
        np.testing.assert_allclose(second[name], first[name], rtol=1e-12, atol=1e-14)


def test_renaming_the_classes_changes_nothing():
    features, labels = clusters(counts=(4, 7, 9))
    renamed = torch.tensor([2, 0, 1])[labels]
    for balanced in (True, False):
        first, second = (
            layer_metrics(look_through(5), [(features, y)], 3, balanced=balanced) for y in (labels, renamed)
        )
        for name in first:
            np.testing.assert_allclose(second[name], first[name], rtol=1e-12, atol=1e-14)


def test_scaling_and_moving_the_features_leaves_the_ratios():
    features, labels = clusters()
    first = layer_metrics(look_through(5), [(features, labels)], 3)
    second = layer_metrics(look_through(5), [(3 * features + 7, labels)], 3)
    for name in ("within_between_ratio", "class_separation"):
        np.testing.assert_allclose(second[name], first[name], rtol=1e-12)
    np.testing.assert_allclose(second["within"], 9 * first["within"], rtol=1e-12)


@given(cut=st.integers(0, 27), offset=st.sampled_from([0.0, 1e3]))
def test_merged_moments_are_those_of_the_union(cut, offset):
    features, labels = clusters(spread=1e-3, offset=offset)
    order = torch.randperm(27, generator=seeded())
    features, labels = features[order], labels[order]
    parts = []
    for part in (slice(None), slice(0, cut), slice(cut, None)):
        moments = ClassMoments(3, 5)
        moments.update(features[part], labels[part])
        parts.append(moments)
    whole, left, right = parts
    left.merge(right)
    assert_close(left.counts, whole.counts, rtol=0, atol=0)
    assert_close(left.means, whole.means, rtol=1e-14, atol=1e-15)
    # What a cut inside a class costs: the shifts are the batches' own means.
    assert_close(left.scatter, whole.scatter, rtol=1e-10, atol=0)


def test_moments_of_other_shapes_do_not_merge():
    with pytest.raises(ValueError, match=r"cannot merge moments of \(3, 5\) into \(3, 4\)"):
        ClassMoments(3, 4).merge(ClassMoments(3, 5))
