"""What a run of descent records, and when it ends."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, LayerMetrics, Spectra, gradient_descent
from lowdyn.networks import MLP
from lowdyn.problems import Factorization, Regression
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (20, 7, [0, 7, 14, 20]),
        (21, 7, [0, 7, 14, 21]),
        (3, 1, [0, 1, 2, 3]),
        (3, 100, [0, 3]),
        (0, 1, [0]),
        (0, 9, [0]),
    ],
)
def test_every_so_many_steps_and_the_last_are_recorded(steps, every, expected):
    network = DeepLinearNetwork.from_weights([[[1.0]]])
    trajectory = gradient_descent(network, Factorization([[0.0]], "sum"), Descent(lr=0.5), steps, every=every)
    assert trajectory["step"].values.tolist() == expected
    np.testing.assert_array_equal(trajectory["loss"], [0.5 * 0.25**step for step in expected])


def test_a_rate_of_zero_moves_nothing():
    network = DeepLinearNetwork((4, 4, 4), generator=seeded())
    start = [weight.clone() for weight in network.weights]
    descent = Descent(lr=0, momentum=0.9, weight_decay=0.1)
    trajectory = gradient_descent(network, Factorization(gaussian(4, 4)), descent, 5)
    assert len(set(trajectory["loss"].values)) == 1
    for weight, expected in zip(network.weights, start, strict=True):
        assert_close(weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tol", "last"),
    # The loss is 0.5·0.25^t: below 1e-3 from step 5 on (4.9e-4), first seen at step 6; at a tolerance is not below it.
    [(1e-3, 6), (0.5 * 0.25**6, 8), (1.0, 0), (0.0, 20), (None, 20)],
)
def test_a_run_ends_at_the_first_record_below_the_tolerance(tol, last):
    network = DeepLinearNetwork.from_weights([[[1.0]]])
    trajectory = gradient_descent(network, Factorization([[0.0]], "sum"), Descent(lr=0.5), 20, every=2, tol=tol)
    assert int(trajectory["step"][-1]) == last
    assert network.end_to_end().item() == 0.5**last


def test_the_weights_are_updated_in_place_and_probes_see_them():
    network = DeepLinearNetwork((4, 4, 3), generator=seeded())
    places = [weight.data_ptr() for weight in network.weights]
    seen = {}

    class Peek:
        def begin(self, model):
            assert model is network
            self.coords = {}
            return self

        def __call__(self, step):
            seen[step] = network.end_to_end().clone()
            return {"step_seen": ((), step)}

    problem = Regression(gaussian(4, 9), gaussian(3, 9, seed=1))
    trajectory = gradient_descent(network, problem, Descent(lr=0.1), 10, record=Peek(), every=4)
    assert [weight.data_ptr() for weight in network.weights] == places
    assert trajectory["step_seen"].values.tolist() == [0, 4, 8, 10]
    for step, product in seen.items():
        assert_close(problem.loss(product).item(), trajectory["loss"].sel(step=step).item(), rtol=1e-13, atol=0)


def test_probes_see_ended_runs_as_they_ended():
    weights = [torch.tensor([[[1.0]], [[8.0]]], dtype=torch.float64)]
    network = DeepLinearNetwork.from_weights(weights)
    trajectory = gradient_descent(
        network, Factorization([[0.0]], "sum"), Descent(lr=0.5), 10, record=Spectra(), tol=0.1
    )
    # Halved at every step; 0.5·w² < 0.1 at w = 1/4 for both, at step 2 and at step 5.
    expected = [[1, 0.5, 0.25, 0.25, 0.25, 0.25], [8, 4, 2, 1, 0.5, 0.25]]
    np.testing.assert_array_equal(trajectory["singular_values"][:, :, 0, 0].T, expected)


def test_several_probes_look_at_once():
    network = MLP((4, 5, 3), bias=False, generator=seeded(), dtype=torch.float64)
    x, labels = gaussian(9, 4), torch.arange(9) % 3
    probes = [Spectra(top=1), LayerMetrics([(x, labels)], 3)]
    problem = Regression(x.T, torch.nn.functional.one_hot(labels).T.double())
    trajectory = gradient_descent(network, problem, Descent(lr=0.1), 4, record=probes, every=2)
    assert trajectory["singular_values"].dims == ("step", "layer", "index")
    assert trajectory["within_between_ratio"].dims == ("step", "features")
    assert trajectory["features"].values.tolist() == ["input", "hidden1", "output"]


def test_the_attributes_say_what_was_run():
    network = DeepLinearNetwork((4, 3), generator=seeded())
    problem = Factorization(gaussian(3, 4))
    attrs = gradient_descent(network, problem, Descent(lr=0.1, factor_rates=(2.0,)), 4, every=2).attrs
    assert {key: attrs[key] for key in ("network", "sizes", "problem", "lr", "steps", "every", "factor_rates")} == {
        "network": "DeepLinearNetwork",
        "sizes": "[4, 3]",
        "problem": "Factorization",
        "lr": 0.1,
        "steps": 4,
        "every": 2,
        "factor_rates": "[2.0]",
    }


@pytest.mark.parametrize(
    "settings", [{"lr": np.float32(0.5)}, {"lr": np.int64(1)}, {"lr": 0.1, "momentum": np.float32(0.5)}]
)
def test_numbers_may_be_numpys(settings):
    network = DeepLinearNetwork((3, 3), generator=seeded())
    gradient_descent(network, Factorization(gaussian(3, 3)), Descent(**settings), 1)
