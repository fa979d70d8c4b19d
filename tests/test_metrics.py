import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lowdyn import DeepLinearNetwork, LayerMetrics, Tracker, layer_metrics
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.observe import ClassMoments
from tests.cases import built, gaussian, seeded
from tests.oracles import layer_statistics

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def look_through(width):
    """Return a network whose only layer repeats its input to the bit."""
    return DeepLinearNetwork.from_weights([torch.eye(width, dtype=torch.float64)])


def clusters(*, spread=1.0, offset=0.0, counts=(9, 9, 9), width=5, seed=0):
    """Return features of classes with Gaussian means, in class order, and their labels."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = gaussian(len(counts), width, seed=seed)
    return offset + means[labels] + spread * gaussian(len(labels), width, seed=seed + 1), labels


def assert_statistics(metrics, layer, features, labels, *, balanced=True, tolerance=1e-10):
    """Compare with the two passes in extended precision; cosines near 1 lose digits before 1 − cos is taken."""
    expected = layer_statistics(features, labels, balanced=balanced)
    assert set(expected) == set(metrics.data_vars)
    for name, value in expected.items():
        absolute = 1e-13 if name.startswith("class") else 0.0
        np.testing.assert_allclose(metrics[name].sel(layer=layer), value, rtol=tolerance, atol=absolute, err_msg=name)


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


# --- which layers


def test_leaf_modules_with_weights_are_taken_in_the_order_of_their_calls():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4, 3), nn.Linear(2, 4)
            self.norm, self.act, self.unused = nn.LayerNorm(4), nn.ReLU(), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.act(self.norm(self.first(x))))

    metrics = layer_metrics(built(Crossed), [(gaussian(6, 2), torch.arange(6) % 3)], 3)
    assert metrics["layer"].values.tolist() == ["input", "first", "norm", "last"]


def test_a_pattern_chooses_among_all_modules():
    model = MLP((4, 5, 5, 3), generator=seeded())
    batch = [(gaussian(6, 4), torch.arange(6) % 3)]
    assert layer_metrics(model, batch, 3, "relu")["layer"].values.tolist() == ["input", "relu1", "relu2"]
    with pytest.raises(ValueError, match=r"no layer matches 'conv': this model has self, hidden1, relu1, .* output"):
        layer_metrics(model, batch, 3, "conv")


def test_a_module_called_twice_appears_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    model, x, labels = built(Twice), gaussian(9, 3, dtype=torch.float32), torch.arange(9) % 3
    metrics = layer_metrics(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], 3)
    assert metrics["layer"].values.tolist() == ["input", "layer", "layer#2"]
    with torch.no_grad():
        # The batches of the pass above, cut elsewhere: float32 products may round otherwise.
        assert_statistics(metrics, "layer#2", model(x), labels, tolerance=1e-5)


def test_images_and_sequences_are_flattened():
    model = built(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))).double()
    x, labels = gaussian(9, 1, 4, 4), torch.arange(9) % 3
    metrics = layer_metrics(model, [(x, labels)], 3)
    with torch.no_grad():
        assert_statistics(metrics, "input", x.flatten(1), labels)
        assert_statistics(metrics, "0", model[0](x).flatten(1), labels)


def test_token_ids_stay_whole_numbers():
    model = built(lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 3)))
    ids, labels = torch.randint(11, (9, 3), generator=seeded()), torch.arange(9) % 3
    metrics = layer_metrics(model, [(ids, labels)], 3)
    assert metrics["layer"].values.tolist() == ["input", "0", "2"]


def test_a_module_that_returns_several_things_is_seen_by_the_first():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    model, x, labels = built(Pair), gaussian(6, 2, 3, dtype=torch.float32), torch.arange(6) % 3
    metrics = layer_metrics(model, [(x, labels)], 3, "rnn")
    with torch.no_grad():
        assert_statistics(metrics, "rnn", model(x).flatten(1), labels)


def test_an_activation_in_place_does_not_rewrite_the_layer_before_it():
    model = built(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))).double()
    x, labels = gaussian(9, 4), torch.arange(9) % 3
    with torch.no_grad():
        assert_statistics(layer_metrics(model, [(x, labels)], 3), "0", model[0](x), labels)


def test_an_activation_in_place_does_not_rewrite_the_data():
    model = built(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)))
    x = gaussian(9, 4, dtype=torch.float32)
    before = x.clone()
    layer_metrics(model, [(x, torch.arange(9) % 3)], 3)
    assert_close(x, before, rtol=0, atol=0)


# --- the model is left as it was


class Fragile(nn.Module):
    """Dropout and batch norm, some parts in eval mode; fails when asked to."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.last, self.fails = nn.Linear(6, 3), False
        self.norm.eval()

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        if self.fails:
            raise RuntimeError("stumbled")
        return self.last(x)


def state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return hooks, [module.training for module in model.modules()], [b.tolist() for b in model.state_dict().values()]


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_flags_and_buffers_are_left_as_they_were(fails):
    model = built(Fragile)
    model.fails = fails
    before, batch = state(model), [(gaussian(6, 4), torch.arange(6) % 3)]
    if fails:
        with pytest.raises(RuntimeError, match="stumbled"):
            layer_metrics(model, batch, 3)
    else:
        # In eval mode nothing is dropped: twice the same numbers.
        first, second = layer_metrics(model, batch, 3), layer_metrics(model, batch, 3)
        assert first.identical(second)
    assert state(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_data_loader_does_not_touch_the_global_generator():
    loader = DataLoader(TensorDataset(gaussian(9, 4), torch.arange(9) % 3), batch_size=3)
    before = torch.get_rng_state()
    try:
        layer_metrics(look_through(4), loader, 3)
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_rng_state(before)


# --- the probe


def test_the_probe_records_the_metrics_of_the_moment():
    model = MLP((4, 5, 3), generator=seeded())
    loader = [(gaussian(9, 4), torch.arange(9) % 3)]
    tracker = Tracker(model, LayerMetrics(loader, 3, layers="relu|output", balanced=False), every=1)
    expected = [layer_metrics(model, loader, 3, "relu|output", balanced=False)]
    model.weights[0].mul_(-1)
    tracker.step()
    expected.append(layer_metrics(model, loader, 3, "relu|output", balanced=False))
    assert tracker.trajectory["features"].values.tolist() == ["input", "relu1", "output"]
    for step, metrics in enumerate(expected):
        for name in metrics:
            np.testing.assert_array_equal(tracker.trajectory[name].sel(step=step), metrics[name])


# --- refusals

GOOD = gaussian(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("batches", "classes", "message"),
    [
        ([GOOD], 1, "num_classes must be at least 2, got 1"),
        ([], 3, "the loader gave no batch"),
        ([GOOD], 4, r"no sample of class \[3\]: num_classes is 4"),
        ([GOOD], 2, r"labels must lie in 0 … 1 \(num_classes=2\), got 0 … 2"),
        ([(GOOD[0], GOOD[1] - 1)], 3, r"labels must lie in 0 … 2 .* got -1 … 1"),
        ([(GOOD[0], GOOD[1].double())], 3, r"labels must be whole numbers \(samples,\), got torch.float64 \(6,\)"),
        ([(GOOD[0], GOOD[1][:, None])], 3, r"labels must be whole numbers \(samples,\), got torch.int64 \(6, 1\)"),
        ([(GOOD[0], GOOD[1][:5])], 3, r"5 labels came with \(6, 4\) features of 'input'"),
        ([GOOD, (GOOD[0] * math.nan, GOOD[1])], 3, "features of 'input' hold NaN or infinity"),
        ([(GOOD[0] * math.inf, GOOD[1])], 3, "features of 'input' hold NaN or infinity"),
    ],
)
def test_data_that_cannot_be_measured_are_refused(batches, classes, message):
    with pytest.raises(ValueError, match=message):
        layer_metrics(look_through(4), batches, classes)


def test_features_that_overflow_are_named():
    model = DeepLinearNetwork.from_weights([1e200 * torch.eye(4, dtype=torch.float64)] * 2)
    with pytest.raises(ValueError, match="features of 'W2' hold NaN or infinity"):
        layer_metrics(model, [GOOD], 3)


def test_an_empty_batch_among_others_is_harmless():
    features, labels = clusters()
    batches = [(features[:0], labels[:0]), (features, labels), (features[:0], labels[:0])]
    assert_statistics(layer_metrics(look_through(5), batches, 3), "W1", features, labels)
