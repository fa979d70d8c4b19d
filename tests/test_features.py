"""How features are reached: pooling, compiled models, functional activations, accumulators of several workers."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from lowdyn import layer_metrics
from lowdyn.networks import MLP
from lowdyn.observe import ClassMoments, class_measures, geometric_rate, layer_features, layer_moments
from lowdyn.observe.moments import ROWS, TotalMoments
from tests.cases import built, gaussian, seeded
from tests.clusters import clusters, look_through

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


class Tokens(nn.Module):
    """A feature map, then tokens with a leading one, then a function that is no module."""

    def __init__(self):
        super().__init__()
        self.patches, self.block = nn.Conv2d(1, 4, 2, stride=2), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(start_dim=2).mT
        tokens = torch.cat([tokens.new_ones(len(x), 1, 4), tokens], dim=1)
        return self.head(torch.tanh(self.block(tokens))[:, 0])


def pooled_widths(pool):
    features = layer_features(built(Tokens), gaussian(5, 1, 4, 4), pool=pool)
    return {name: value.shape[1] for name, value in features.items()}


def test_pooling_says_what_a_feature_is():
    assert pooled_widths("flatten") == {"input": 16, "patches": 16, "block": 20, "head": 3}
    assert pooled_widths("mean") == {"input": 16, "patches": 4, "block": 4, "head": 3}
    assert pooled_widths("cls") == {"input": 16, "patches": 16, "block": 4, "head": 3}
    assert pooled_widths(lambda output: output.flatten(1)[:, :2]) == {"input": 16, "patches": 2, "block": 2, "head": 2}


def test_pooled_features_are_means_and_first_tokens():
    model, x = built(Tokens).double(), gaussian(5, 1, 4, 4)
    with torch.no_grad():
        maps = model.patches(x)
        tokens = torch.cat([maps.new_ones(5, 1, 4), maps.flatten(2).mT], dim=1)
        block = model.block(tokens)
    mean, first = (layer_features(model, x, pool=pool) for pool in ("mean", "cls"))
    assert_close(mean["patches"], maps.mean(dim=(2, 3)))
    assert_close(mean["block"], block.mean(dim=1))
    assert_close(first["block"], block[:, 0])


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ("max", "pool must be one of 'flatten', 'mean', 'cls', got 'max'"),
        (
            lambda output: output.sum(),
            r"pool made \(\) of \(5, 4, 2, 2\) from 'patches'; it must be \(samples, width\)",
        ),
        (lambda output: output.mT, "pool made .* it must be"),
        (lambda output: None, "pool made NoneType of"),
    ],
)
def test_pools_that_make_no_features_are_refused(pool, message):
    with pytest.raises(ValueError, match=message):
        pooled_widths(pool)


@pytest.mark.parametrize("inputs", [torch.zeros(2), torch.tensor(1.0)])
def test_what_is_no_batch_is_refused(inputs):
    shape = re.escape(str(tuple(inputs.shape)))
    with pytest.raises(ValueError, match=rf"inputs must be a batch \(samples, …\), got shape {shape}; add a dimension"):
        layer_features(MLP((2, 3), generator=seeded()), inputs)


def test_a_functional_activation_is_the_output_of_its_module():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x):
            return torch.relu(self.linear(x))

    model, x = built(lambda: nn.Sequential(Layer(), nn.Linear(6, 3))).double(), gaussian(7, 4)
    features = layer_features(model, x, r"^0$")
    with torch.no_grad():
        assert_close(features["0"], model[0](x), rtol=0, atol=0)


def test_named_outputs_count_by_their_first_tensor():
    class Output(dict):
        @property
        def logits(self):
            return self["logits"]

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 3)

        def forward(self, x):
            return Output(loss=None, logits=self.inner(x))

    batch = clusters()
    metrics = layer_metrics(built(Named).double(), [batch], 3, collapse=True)
    assert np.isfinite(metrics["nc4"]).all()


def test_a_classifier_called_by_name_shows_its_input():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(input=torch.relu(self.hidden(x)))

    model, (x, labels) = built(Named).double(), clusters()
    metrics = layer_metrics(model, [(x, labels)], 3, collapse=True)
    assert metrics["layer"].values.tolist() == ["input", "hidden", "head.input", "head"]
    assert np.isfinite(metrics["nc3"].sel(layer="head.input"))


def test_a_model_compiled_and_run_before_is_seen():
    model = MLP((5, 4, 3), generator=seeded())
    x, labels = clusters()
    expected = layer_metrics(model, [(x, labels)], 3)
    compiled = torch.compile(model, backend="eager")
    compiled(x.float())
    assert layer_metrics(compiled, [(x, labels)], 3).identical(expected)
    model.compile(backend="eager")
    model(x.float())
    assert layer_metrics(model, [(x, labels)], 3).identical(expected)


# --- accumulators


def test_workers_that_share_the_samples_have_them_all():
    model, (x, labels) = MLP((5, 4, 3), generator=seeded()).double(), clusters(counts=(9, 5, 3))
    expected = layer_metrics(model, [(x, labels)], 3, balanced=False)
    # The first worker lacks a class.
    first, *others = (layer_moments(model, [(x[part], labels[part])], 3) for part in torch.arange(17).split(6))
    assert first["input"].counts.tolist() == [6.0, 0.0, 0.0]
    for other in others:
        for name, moments in first.items():
            moments.merge(other[name])
    for name, moments in first.items():
        for variable, value in class_measures(moments, balanced=False).items():
            np.testing.assert_allclose(value, expected[variable].sel(layer=name), rtol=1e-12)


def test_memory_is_that_of_the_class_means():
    """Twice classes · width numbers, however many samples have come."""
    moments = ClassMoments(10, 64)
    for seed in range(20):
        moments.update(gaussian(3 * ROWS + 1, 64, seed=seed), torch.arange(3 * ROWS + 1) % 10)
        assert sum(tensor.numel() for tensor in vars(moments).values()) == 2 * 10 * 64 + 2 * 10
    assert moments.counts.sum() == 20 * (3 * ROWS + 1)


def test_features_that_carry_a_graph_are_taken_without_it():
    features = gaussian(9, 4).requires_grad_()
    moments, total = ClassMoments(3, 4), TotalMoments(4)
    moments.update(features, torch.arange(9) % 3)
    total.update(features)
    assert not moments.means.requires_grad
    assert not total.scatter.requires_grad


def test_a_first_sample_far_away_costs_no_digits():
    """The shift is that sample's: what follows it must not cancel."""
    rest = 1 + 1e-4 * gaussian(20_000, 3)
    features = torch.cat([torch.full((1, 3), 1e3, dtype=torch.float64), rest])
    moments = ClassMoments(1, 3)
    for part in features.split(1000):
        moments.update(part, torch.zeros(len(part), dtype=torch.int64))
    exact = features.numpy().astype(np.longdouble)
    np.testing.assert_allclose(moments.scatter, float(((exact - exact.mean(axis=0)) ** 2).sum()), rtol=1e-11)


@given(cut=st.integers(0, 30), offset=st.sampled_from([0.0, 1e3]))
def test_total_moments_are_those_of_the_union(cut, offset):
    features = gaussian(30, 4) * torch.tensor([1.0, 1e-3, 1.0, 0.0]) + offset
    left, right = TotalMoments(4), TotalMoments(4)
    left.update(features[:cut])
    right.update(features[cut:])
    left.merge(right)
    exact = features.numpy().astype(np.longdouble)
    centred = exact - exact.mean(axis=0)
    np.testing.assert_allclose(left.mean, exact.mean(axis=0).astype(float), rtol=1e-14)
    np.testing.assert_allclose(left.scatter, (centred.T @ centred).astype(float), rtol=1e-9, atol=1e-14 * (1 + offset))
    np.testing.assert_allclose(left.gram, (exact.T @ exact).astype(float), rtol=1e-12, atol=1e-12)


def test_total_moments_of_other_widths_do_not_merge():
    with pytest.raises(ValueError, match="cannot merge moments of width 5 into width 4"):
        TotalMoments(4).merge(TotalMoments(5))


# --- the geometric law


@given(rate=st.floats(1e-3, 10.0), first=st.floats(1e-6, 1e6), layers=st.integers(2, 12))
def test_a_geometric_sequence_has_its_rate(rate, first, layers):
    fit = geometric_rate(first * rate ** np.arange(layers))
    assert fit.rate == pytest.approx(rate, rel=1e-9)
    # A rate near 1 leaves no variance to explain.
    assert abs(math.log(rate)) < 1e-6 or fit.r_squared == pytest.approx(1.0, abs=1e-6)


def test_the_rate_is_that_of_a_line_through_logarithms():
    values, layers = np.exp(np.random.default_rng(0).normal(size=6)), np.array([0, 1, 3, 4, 7, 8])
    line = np.polynomial.Polynomial.fit(layers, np.log(values), 1)
    residual = np.log(values) - line(layers)
    fit = geometric_rate(values, layers)
    assert fit.rate == pytest.approx(math.exp(line.deriv()(0.0)))
    assert fit.r_squared == pytest.approx(1 - residual.var() / np.log(values).var())


@pytest.mark.parametrize("values", [[1.0, 0.0, 2.0], [1.0, -1.0], [1.0, math.nan]])
def test_what_is_not_positive_has_no_rate(values):
    assert all(math.isnan(number) for number in geometric_rate(values))


@pytest.mark.parametrize(("values", "layers"), [([1.0], None), ([1.0, 2.0], [0.0]), ([[1.0, 2.0]], None)])
def test_one_value_has_no_rate(values, layers):
    with pytest.raises(ValueError, match="a rate over depth needs two or more values"):
        geometric_rate(values, layers)


def test_metrics_of_an_outlier_and_a_point_are_exact():
    # Class 0: one at 10, three at 0; class 1 at 4: Σ_W = (75/4)/2.
    x, labels = torch.tensor([[10.0], [0.0], [0.0], [0.0], [4.0]], dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1])
    metrics = layer_metrics(look_through(1), [(x[:1], labels[:1]), (x[1:], labels[1:])], 2)
    np.testing.assert_allclose(metrics["within"], 75 / 8, rtol=1e-15)
