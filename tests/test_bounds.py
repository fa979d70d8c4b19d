import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, layer_metrics
from lowdyn.linalg import orthonormal_complement, random_orthogonal
from lowdyn.networks import MLP
from lowdyn.observe.bounds import layerwise_bounds
from lowdyn.problems import Regression
from lowdyn.trajectory import load, save
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def classes(num_classes, per_class):
    return torch.arange(num_classes).repeat_interleave(per_class)


def ideal(inputs, labels, num_classes, depth, *, bulk):
    """The network the theorem describes: minimum norm, balanced, with one ``bulk`` value (or d − K) the last kills."""
    width = inputs.shape[0]
    solution = Regression(inputs, one_hot(labels, num_classes).T.to(inputs)).solution()
    left, values, right_t = torch.linalg.svd(solution, full_matrices=False)
    share = values ** (1 / depth)
    frames = [torch.cat([right_t.T, orthonormal_complement(right_t.T)], dim=1)]
    frames += [random_orthogonal(width, width, generator=seeded(layer)) for layer in range(1, depth)]
    inner = torch.cat([share, torch.as_tensor(bulk, dtype=share.dtype).expand(width - num_classes)])
    weights = [above @ torch.diag(inner) @ below.T for below, above in pairwise(frames)]
    return DeepLinearNetwork.from_weights([*weights, (left * share) @ frames[-1][:, :num_classes].T])


def trained(inputs, labels, num_classes, depth, *, init_scale, lr, tol=1e-10):
    width = inputs.shape[0]
    network = DeepLinearNetwork((*[width] * depth, num_classes), init_scale, generator=seeded(3))
    problem = Regression(inputs, one_hot(labels, num_classes).T.to(inputs))
    gradient_descent(network, problem, Descent(lr), 20_000, every=100, tol=tol)
    return network


# --- truths


@pytest.mark.parametrize(("num_classes", "per_class", "depth", "bulk"), [(5, 10, 8, 0.5), (2, 3, 2, 0.3), (3, 4, 5, 1)])
def test_the_network_of_the_theorem_in_closed_form(num_classes, per_class, depth, bulk):
    width, labels = num_classes * per_class, classes(num_classes, per_class)
    inputs = random_orthogonal(width, width, generator=seeded())
    bounds = layerwise_bounds(ideal(inputs, labels, num_classes, depth, bulk=bulk), inputs, labels, num_classes)
    for name in ("theta", "minimum_norm_residual", "balancedness", "bulk_spread"):
        assert float(bounds[name]) == pytest.approx(0, abs=1e-11)
    assert float(bounds["bulk_scale"]) == pytest.approx(bulk, rel=1e-12)
    # The means lie on the top K directions, whose values are √n; the deviations on the bulk.
    expected = bulk**2 / per_class ** (1 / depth)
    np.testing.assert_allclose(bounds["compression_ratio"], np.full(depth - 1, expected), rtol=1e-10)
    np.testing.assert_allclose(bounds["slack_lower"], 4 ** (1 / depth), rtol=1e-10)
    np.testing.assert_allclose(bounds["slack_upper"], 2 ** (1 / depth), rtol=1e-10)
    assert bool(bounds["ratio_inside"].all())
    # The last layer has no bulk: what the orthogonal start conserves.
    delta = bulk**2 * math.sqrt(width - num_classes)
    # Gradient flow conserves δ; descent in steps of lr 1 drifts by some 1e-4 of it.
    assert float(bounds["delta"]) == pytest.approx(delta, rel=1e-12)
    layer = np.arange(depth - 1)
    np.testing.assert_allclose(bounds["discrimination_lower"], 1 - 128 * delta / depth * (depth - layer - 1), rtol=1e-9)
    np.testing.assert_allclose(bounds["class_discrimination"], 1, rtol=1e-12)
    assert bool(bounds["discrimination_holds"].all())
    assert bool(bounds["vacuous"].all())


def test_the_published_interval():
    inputs, labels = random_orthogonal(50, 50, generator=seeded()), classes(5, 10)
    network = trained(inputs, labels, 5, 8, init_scale=0.5, lr=1.0)
    bounds = layerwise_bounds(network, inputs, labels, 5)
    interval = [round(float(bounds[name]), 3) for name in ("ratio_lower", "ratio_upper")]
    assert interval == [0.158, 0.204]
    np.testing.assert_allclose(bounds["compression_ratio"], 0.185, atol=0.0015)
    assert bool(bounds["ratio_inside"].all())
    # Gradient flow conserves δ; descent in steps of lr 1 drifts by some 1e-4 of it.
    assert float(bounds["delta"]) == pytest.approx(0.25 * math.sqrt(45), rel=1e-3)
    assert float(bounds["bulk_spread"]) < 1e-12
    assert float(bounds["minimum_norm_residual"]) < 1e-3
    assert float(bounds["balancedness"]) < 0.01
    assert bool(bounds["vacuous"].all())


def test_a_tiny_bulk_makes_the_second_bound_say_something():
    inputs, labels = random_orthogonal(12, 12, generator=seeded()), classes(3, 4)
    bounds = layerwise_bounds(ideal(inputs, labels, 3, 4, bulk=0.02), inputs, labels, 3)
    delta = 0.02**2 * 3
    np.testing.assert_allclose(bounds["discrimination_lower"], [1 - 32 * delta * rest for rest in (3, 2, 1)], rtol=1e-9)
    assert not bool(bounds["vacuous"].any())
    assert bool(bounds["discrimination_holds"].all())


def test_parallel_means_break_a_bound_that_says_something():
    # Both classes share a large mean in the features, by a first weight that lets little else through.
    inputs, labels = random_orthogonal(6, 6, generator=seeded()), classes(2, 3)
    network = ideal(inputs, labels, 2, 3, bulk=1e-3)
    common = inputs.mean(dim=1)
    common = common / common.norm()
    network.weights[0].copy_(
        network.weights[0] @ (1e-2 * torch.eye(6, dtype=torch.float64) + torch.outer(common, common))
    )
    bounds = layerwise_bounds(network, inputs, labels, 2)
    assert float(bounds["class_discrimination"][1]) < 1e-3
    assert bounds["discrimination_holds"].values.tolist() == [True, False]
    assert not bool(bounds["vacuous"].any())
    assert float(bounds["minimum_norm_residual"]) > 0.1
    assert float(bounds["balancedness"]) > 0.1


# --- assumptions, one by one


def test_theta_is_the_smallest_that_holds():
    inputs = torch.eye(8, dtype=torch.float64)[:, :6].clone()
    inputs[0, 1] = 0.01  # ⟨x_0, x_1⟩ = 0.01, ‖x_1‖² − 1 = 1e-4
    labels = classes(2, 3)
    network = ideal(inputs, labels, 2, 2, bulk=0.1)
    assert float(layerwise_bounds(network, inputs, labels, 2)["theta"]) == pytest.approx(6 * 0.01, rel=1e-10)
    inputs[2, 2] = 1.1
    assert float(layerwise_bounds(network, inputs, labels, 2)["theta"]) == pytest.approx(6 * 0.21, rel=1e-10)


@pytest.mark.parametrize("samples", [6, 8, 12])
def test_the_residual_is_relative_to_the_smallest_solution(samples):
    inputs, labels = gaussian(8, samples), classes(2, samples // 2)
    network = ideal(inputs, labels, 2, 3, bulk=0.1)
    assert float(layerwise_bounds(network, inputs, labels, 2)["minimum_norm_residual"]) < 1e-12
    network.weights[2].mul_(1.25)
    assert float(layerwise_bounds(network, inputs, labels, 2)["minimum_norm_residual"]) == pytest.approx(0.25, rel=1e-9)


def test_balancedness_is_that_of_the_worst_pair_below_the_last():
    inputs, labels = random_orthogonal(8, 8, generator=seeded()), classes(2, 4)
    network = ideal(inputs, labels, 2, 4, bulk=0.5)
    before = layerwise_bounds(network, inputs, labels, 2)
    network.weights[0].mul_(2)
    after = layerwise_bounds(network, inputs, labels, 2)
    gram = network.weights[1].T @ network.weights[1]
    assert float(after["balancedness"]) == pytest.approx(3 * float(gram.norm()), rel=1e-12)
    assert float(after["delta"]) == pytest.approx(float(before["delta"]), rel=1e-12)
    assert float(layerwise_bounds(ideal(inputs, labels, 2, 2, bulk=0.5), inputs, labels, 2)["balancedness"]) == 0


def test_the_bulk_is_what_lies_between_the_k_largest_and_the_k_smallest():
    inputs, labels = random_orthogonal(10, 10, generator=seeded()), classes(2, 5)
    # K = 2: the two smallest, 0.1 and 0.05, are not of the bulk.
    bulk = [0.5, 0.48, 0.47, 0.46, 0.45, 0.44, 0.1, 0.05]
    bounds = layerwise_bounds(ideal(inputs, labels, 2, 3, bulk=bulk), inputs, labels, 2)
    assert float(bounds["bulk_scale"]) == pytest.approx(0.5, rel=1e-12)
    assert float(bounds["bulk_spread"]) == pytest.approx(0.06, rel=1e-10)


# --- the answer


def test_constants_widen_the_interval():
    inputs, labels = random_orthogonal(8, 8, generator=seeded()), classes(2, 4)
    network = ideal(inputs, labels, 2, 3, bulk=0.5)
    sharp, wide = (
        layerwise_bounds(network, inputs, labels, 2),
        layerwise_bounds(network, inputs, labels, 2, c=0.5, kappa=3),
    )
    assert float(wide["ratio_lower"] / sharp["ratio_lower"]) == pytest.approx(1 / 6)
    assert float(wide["ratio_upper"] / sharp["ratio_upper"]) == pytest.approx(6)
    assert (wide.attrs["c"], wide.attrs["kappa"]) == (0.5, 3.0)


def test_a_ratio_outside_is_outside():
    inputs, labels = random_orthogonal(8, 8, generator=seeded()), classes(2, 4)
    network = ideal(inputs, labels, 2, 3, bulk=0.5)
    # Top values four times as large: D falls by 16 more, as if the bulk were a quarter of what is measured.
    left, values, right_t = torch.linalg.svd(network.weights[0])
    network.weights[0].copy_((left * torch.cat([4 * values[:2], values[2:]])) @ right_t)
    bounds = layerwise_bounds(network, inputs, labels, 2)
    assert bounds["ratio_inside"].values.tolist() == [False, True]
    assert float(bounds["slack_lower"][0]) == pytest.approx(4 ** (1 / 3) / 16, rel=1e-10)


def test_the_measures_are_those_of_layer_metrics():
    inputs, labels = gaussian(9, 9), classes(3, 3)[torch.tensor([0, 3, 6, 1, 4, 7, 2, 5, 8])]
    network = trained(inputs / 3, labels, 3, 4, init_scale=0.5, lr=0.5, tol=1e-3)
    bounds = layerwise_bounds(network, inputs, labels, 3)
    metrics = layer_metrics(network, [(inputs.T, labels)], 3)
    ratios = metrics["within_between_ratio"].values
    np.testing.assert_allclose(bounds["compression_ratio"], ratios[1:4] / ratios[:3], rtol=1e-12)
    np.testing.assert_allclose(bounds["class_discrimination"], metrics["class_discrimination"].values[:3], rtol=1e-12)
    assert bounds["layer"].values.tolist() == [0, 1, 2]
    assert bounds.attrs == {"depth": 4, "width": 9, "num_classes": 3, "per_class": 3, "c": 1.0, "kappa": 1.0}


def test_a_network_in_float32_is_measured_in_float64_and_left_alone():
    inputs, labels = random_orthogonal(8, 8, generator=seeded()), classes(2, 4)
    network = ideal(inputs, labels, 2, 6, bulk=0.05)
    single = DeepLinearNetwork.from_weights([weight.to(torch.float32) for weight in network.weights])
    before = [weight.clone() for weight in single.weights]
    bounds = layerwise_bounds(single, inputs.numpy(), labels.tolist(), 2)
    expected = layerwise_bounds(network, inputs, labels, 2)["compression_ratio"].values
    np.testing.assert_allclose(bounds["compression_ratio"], expected, rtol=0.01)
    # Features in float32 scatter by themselves.
    rounded = layer_metrics(single, [(inputs.T, labels)], 2)["within_between_ratio"].values
    assert rounded[5] / rounded[4] > 1.05 * expected[4]
    assert all(torch.equal(weight, then) for weight, then in zip(single.weights, before, strict=True))
    assert bounds["delta"].dtype == np.float64


def test_the_answer_can_be_stored(tmp_path):
    inputs, labels = random_orthogonal(8, 8, generator=seeded()), classes(2, 4)
    bounds = layerwise_bounds(ideal(inputs, labels, 2, 3, bulk=0.5), inputs, labels, 2)
    assert load(save(bounds, tmp_path / "bounds.nc")).identical(bounds)


def test_collapsed_classes_have_no_ratio():
    labels = classes(2, 3)
    inputs = torch.eye(6, dtype=torch.float64)[:, labels]  # every class is one point
    bounds = layerwise_bounds(DeepLinearNetwork((6, 6, 6, 2), generator=seeded()), inputs, labels, 2)
    assert np.isnan(bounds["compression_ratio"][0])
    assert not bool(bounds["ratio_inside"][0])


# --- refusals


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"network": MLP((6, 6, 2), generator=seeded())}, TypeError, "about a DeepLinearNetwork, got MLP"),
        (
            {"network": DeepLinearNetwork((6, 6, 2), generator=seeded(), runs=2)},
            ValueError,
            r"take one of them, network.run\(i\)",
        ),
        ({"network": DeepLinearNetwork((6, 2), generator=seeded())}, ValueError, "two weights or more"),
        ({"network": DeepLinearNetwork((6, 5, 2), generator=seeded())}, ValueError, r"got \(6, 5, 2\)"),
        ({"network": DeepLinearNetwork((6, 6, 3), generator=seeded())}, ValueError, r"sizes \(d, …, d, 2\)"),
        ({"network": DeepLinearNetwork((4, 4, 2), generator=seeded())}, ValueError, "d > 4"),
        ({"inputs": torch.ones(7, 6)}, ValueError, r"inputs must be \(6, samples\)"),
        ({"inputs": torch.full((6, 6), torch.nan)}, ValueError, "NaN"),
        ({"labels": classes(2, 2)}, ValueError, "4 labels came with"),
        ({"labels": torch.tensor([0, 0, 0, 0, 1, 1])}, ValueError, r"got \[4, 2\] samples; keep 2 of every class"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, ValueError, "no sample of class"),
        ({"labels": classes(3, 2)}, ValueError, "labels must lie in 0 … 1"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2"),
        ({"c": 1.5}, ValueError, "c must be below 1"),
        ({"c": 0.0}, ValueError, "c must be at least"),
        ({"kappa": 0.5}, ValueError, "kappa must be at least 1"),
    ],
)
def test_what_the_theorem_is_not_about_is_refused(changes, error, message):
    arguments = {
        "network": DeepLinearNetwork((6, 6, 2), generator=seeded()),
        "inputs": torch.eye(6, dtype=torch.float64),
        "labels": classes(2, 3),
        "num_classes": 2,
    }
    with pytest.raises(error, match=message):
        layerwise_bounds(**arguments | changes)
