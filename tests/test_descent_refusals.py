"""What descent and its step rule refuse before anything moves, and how they leave the threads."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.dynamics import DivergenceError
from lowdyn.networks import MLP
from lowdyn.problems import Factorization
from tests.cases import STEEP, balanced_solution, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"tol": -1e-3}, ValueError, "tol must be at least 0"),
        ({"tol": np.nan}, ValueError, "tol must be finite"),
        ({"problem": "sum"}, TypeError, "problem must be a Factorization, Regression, Completion or Sensing, got str"),
        ({"problem": Factorization(gaussian(4, 3))}, ValueError, "maps 4 inputs to 3 outputs, the problem .3, 4."),
        ({"problem": Factorization(gaussian(2, 3, 4))}, ValueError, "2 runs, the network no dimension of runs"),
        ({"descent": Descent(0.1, factor_rates=(1.0, 1.0))}, ValueError, "factor_rates has 2 entries, the network 1"),
        ({"descent": Descent(lambda step: float("nan"))}, ValueError, r"lr\(0\) must be finite"),
        ({"descent": Descent(lambda step: -1.0 * step)}, ValueError, r"lr\(1\) must be at least 0"),
        ({"descent": Descent(lambda step: "fast")}, TypeError, r"lr\(0\) must be a number"),
        ({"network": MLP((4, 3), generator=seeded())}, TypeError, r"without biases .* use lowdyn.train"),
        ({"network": MLP((4, 3), bias=False, output_scale=2, generator=seeded())}, TypeError, "output_scale 1"),
        (
            {
                "network": DeepLinearNetwork((4, 3), generator=seeded(), runs=3),
                "problem": Factorization(gaussian(2, 3, 4)),
            },
            ValueError,
            "the problem holds 2 runs, the network 3",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_moves(arguments, error, message):
    network = arguments.pop("network", None) or DeepLinearNetwork((4, 3), generator=seeded())
    call = {"problem": Factorization(gaussian(3, 4)), "descent": Descent(0.1), "steps": 2, **arguments}
    before = [weight.clone() for weight in network.weights]
    with pytest.raises(error, match=message):
        gradient_descent(network, **call)
    if not callable(call["descent"].lr):
        for weight, expected in zip(network.weights, before, strict=True):
            assert_close(weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr must be at least 0"),
        ({"lr": np.inf}, ValueError, "lr must be finite"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"lr": 0.1, "momentum": -0.5}, ValueError, "momentum must be at least 0"),
        ({"lr": 0.1, "weight_decay": -0.5}, ValueError, "weight_decay must be at least 0"),
        ({"lr": 0.1, "nesterov": True}, ValueError, "nesterov=True needs a momentum above 0"),
        ({"lr": 0.1, "factor_rates": (1.0, -1.0)}, ValueError, "every factor rate must be at least 0"),
        ({"lr": 0.1, "factor_rates": (1.0, None)}, TypeError, "every factor rate must be a number"),
    ],
)
def test_what_is_no_step_rule_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Descent(**arguments)


def test_the_rule_knows_its_rates():
    assert Descent(lr=1).rate(7) == 1.0
    assert Descent(lr=lambda step: 1 / (1 + step)).rate(3) == 0.25
    assert Descent(lr=1).rates_of_factors(3) == (1.0, 1.0, 1.0)
    assert Descent(lr=1, factor_rates=[0.5, 2]).rates_of_factors(2) == (0.5, 2.0)


# --- nothing global


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Stumble:
    """A probe that notes the number of threads, and fails at the second record."""

    def __init__(self):
        self.coords, self.threads = {}, []

    def begin(self, model):
        return self

    def __call__(self, step):
        self.threads.append(torch.get_num_threads())
        if step:
            raise RuntimeError("stumbled")
        return {}


@pytest.mark.usefixtures("two_threads")
def test_small_products_take_one_thread_and_give_the_others_back():
    probe = Stumble()
    with pytest.raises(RuntimeError, match="stumbled"):
        gradient_descent(
            DeepLinearNetwork((4, 4), generator=seeded()), Factorization(gaussian(4, 4)), Descent(0.1), 3, probe
        )
    assert probe.threads == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_divergence_gives_the_threads_back():
    with pytest.raises(DivergenceError):
        gradient_descent(balanced_solution(STEEP.targets, 2), Factorization(gaussian(2, 2)), Descent(9.0), 100)
    assert torch.get_num_threads() == 2
