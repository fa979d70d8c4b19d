"""Runs that diverge are named with the largest stable rate, and that rate is the border."""

import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.dynamics import DivergenceError, stable_lr
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.problems import Factorization, Regression
from tests.cases import CHAINS, STEEP, balanced_solution, gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


# --- divergence


@pytest.mark.parametrize("problem", [STEEP, Regression(torch.eye(2), STEEP.targets, "sum")], ids=["linear", "inputs"])
def test_a_diverging_run_names_step_rate_and_the_largest_stable_rate(problem):
    network = balanced_solution(STEEP.targets, 2)
    network.weights[0].mul_(1.1)
    with pytest.raises(DivergenceError, match="not finite") as error:
        gradient_descent(network, problem, Descent(lr=1.5), 1000, every=3)
    step, rate, stable = map(float, re.findall(r"step (\S+) with lr (\S+); .* about (\S+);", str(error.value))[0])
    assert rate == 1.5
    # Two layers at σ = 4 have curvature 2·4, the start a little more: 4.84 + 4. The message gives three digits.
    assert stable == pytest.approx(2 / 8.84, rel=1e-2)
    trajectory = error.value.trajectory
    assert trajectory["step"].values.tolist() == list(range(0, int(step), 3))
    assert np.isfinite(trajectory["loss"]).all()


def test_divergence_is_seen_between_records_and_named_for_relus():
    network = MLP.from_weights(CHAINS["N > d"].weights())
    with pytest.raises(DivergenceError, match=r"at step 100 .* for the linear network of this depth") as error:
        gradient_descent(network, CHAINS["N > d"].problem(), Descent(lr=50.0), 100_000, every=100_000)
    assert error.value.trajectory["step"].values.tolist() == [0]


def test_diverging_runs_are_named():
    network = DeepLinearNetwork.from_weights([torch.ones(3, 1, 1, dtype=torch.float64)] * 2)
    targets = torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64).reshape(3, 1, 1)
    with pytest.raises(DivergenceError, match=r"in runs \[1\]"):
        gradient_descent(network, Factorization(targets, "sum"), Descent(lr=0.3), 100)


def test_diverging_runs_are_named_after_others_have_ended():
    network = DeepLinearNetwork.from_weights([torch.ones(3, 1, 1, dtype=torch.float64)] * 2)
    targets = torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64).reshape(3, 1, 1)
    with pytest.raises(DivergenceError, match=r"in runs \[2\]"):
        gradient_descent(network, Factorization(targets, "sum"), Descent(lr=0.3), 100, tol=1e-9)


@pytest.mark.parametrize("settings", [{"factor_rates": (10.0, 10.0)}, {"weight_decay": 10.0}])
def test_the_rate_named_is_one_below_that_which_diverged(settings):
    network = DeepLinearNetwork.from_weights([[[1.0]], [[1.5]]])
    with pytest.raises(DivergenceError) as error:
        gradient_descent(network, Factorization([[1.0]], "sum"), Descent(lr=0.5, **settings), 1000)
    assert float(re.findall(r"about (\S+);", str(error.value))[0]) < 0.5


def test_a_diverging_start_has_no_records():
    network = DeepLinearNetwork.from_weights([1e100 * torch.eye(2, dtype=torch.float64)] * 2)
    with pytest.raises(DivergenceError, match="not finite at step 0") as error:
        gradient_descent(network, STEEP, Descent(lr=0.1), 10)
    assert error.value.trajectory.sizes["step"] == 0


# --- the largest stable rate


def balanced_curvature(problem, network):
    """Return the largest eigenvalue of the Hessian in all weights, by autograd."""
    shapes = [weight.shape for weight in network.weights]

    def loss(flat):
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        product = torch.eye(shapes[0][1], dtype=flat.dtype)
        for part, shape in zip(parts, shapes, strict=True):
            product = part.reshape(shape) @ product
        return problem.loss(product)

    flat = torch.cat([weight.flatten() for weight in network.weights])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("stretch", [None, 2.5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_stable_rate_is_two_over_the_curvature_at_the_balanced_solution(depth, stretch, reduction):
    target = gaussian(3, 3)
    if stretch is None:
        problem = Factorization(target, reduction)
    else:
        inputs = stretch**0.5 * random_orthogonal(3, 5, generator=seeded())
        problem = Regression(inputs, target @ inputs, reduction)
    expected = 2 / balanced_curvature(problem, balanced_solution(target, depth))
    assert stable_lr(problem, depth) == pytest.approx(expected, rel=1e-10)


@given(width=st.integers(1, 4), depth=st.integers(1, 3), samples=st.integers(1, 6))
def test_the_stable_rate_is_on_the_safe_side_for_other_inputs(width, depth, samples):
    problem = Regression(gaussian(width, samples), gaussian(width, samples, seed=1), "sum")
    assume(float(torch.linalg.svdvals(problem.solution())[-1]) > 1e-6)
    curvature = balanced_curvature(problem, balanced_solution(problem.solution(), depth))
    assert stable_lr(problem, depth) <= 2 / curvature * (1 + 1e-9)


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("stretch", [None, 2.5])
def test_the_stable_rate_is_the_border_near_the_solution(momentum, depth, stretch):
    target = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    inputs = (stretch or 1.0) ** 0.5 * random_orthogonal(3, 3, generator=seeded())
    problem = Factorization(target) if stretch is None else Regression(inputs, target @ inputs)
    border, last = stable_lr(problem, depth, **momentum), {}
    for fraction in (0.95, 1.05):
        network = balanced_solution(target, depth)
        for layer, weight in enumerate(network.weights):
            weight.add_(1e-4 * gaussian(3, 3, seed=layer))
        try:
            trajectory = gradient_descent(network, problem, Descent(fraction * border, **momentum), 2000, every=100)
            last[fraction] = float(trajectory["loss"][-1] / trajectory["loss"][0])
        except DivergenceError:
            last[fraction] = np.inf
    assert last[0.95] < 1e-12
    assert last[1.05] > 1e3


def test_a_large_start_is_stiffer_than_the_solution():
    weights = DeepLinearNetwork((3, 3, 3), 10.0, generator=seeded()).weights
    problem = Factorization(torch.eye(3, dtype=torch.float64), "sum")
    assert stable_lr(problem, 2) == pytest.approx(1.0, rel=1e-12)
    assert stable_lr(problem, 2, weights=weights) == pytest.approx(2 / 200, rel=1e-12)
    small = DeepLinearNetwork((3, 3, 3), 0.1, generator=seeded()).weights
    assert stable_lr(problem, 2, weights=small) == pytest.approx(1.0, rel=1e-12)


def test_of_several_problems_the_steepest_counts():
    targets = torch.stack([torch.eye(2, dtype=torch.float64), STEEP.targets])
    assert stable_lr(Factorization(targets, "sum"), 2) == pytest.approx(stable_lr(STEEP, 2), rel=1e-14)


def test_nothing_to_learn_bounds_no_rate():
    assert stable_lr(Factorization(torch.zeros(3, 3)), 2) == np.inf


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"depth": 0}, ValueError), ({"depth": 1.5}, TypeError), ({"depth": 1, "momentum": -1}, ValueError)],
)
def test_what_has_no_stable_rate_is_refused(arguments, error):
    with pytest.raises(error, match="must be"):
        stable_lr(STEEP, **arguments)
