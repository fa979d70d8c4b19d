"""Gradient descent against torch's SGD, against closed forms, and in either precision."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.dynamics import stable_lr
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.problems import Factorization, Regression
from tests.cases import CHAINS, ROUNDING, RULES, Chain, gaussian, seeded
from tests.oracles import descend_by_autograd

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def assert_descends_like_autograd(network, problem, chain, descent, *, steps=20, every=7):
    inputs, targets = chain.data()
    start = [weight.clone() for weight in network.weights]
    expected, losses = descend_by_autograd(
        start, inputs, targets, descent, steps, scale=problem.scale, rectified=network.rectified
    )
    trajectory = gradient_descent(network, problem, descent, steps, every=every)
    for weight, other in zip(network.weights, expected, strict=True):
        assert_close(weight, other, **ROUNDING)
    np.testing.assert_allclose(trajectory["loss"], np.array(losses)[trajectory["step"]], **ROUNDING)


# --- the twin


@every_chain
@every_rule
def test_descent_is_torch_sgd(chain, rule):
    depth = len(chain.sizes) - 1
    network = DeepLinearNetwork.from_weights(chain.weights())
    assert_descends_like_autograd(network, chain.problem(), chain, rule(depth))


@every_rule
@pytest.mark.parametrize("relu_layers", [1, 2, 3])
@pytest.mark.parametrize("samples", [7, None])
def test_descent_through_relus_is_torch_sgd(rule, relu_layers, samples):
    chain = Chain((4, 5, 6, 5, 2), samples)
    network = MLP.from_weights(chain.weights(), relu_layers=relu_layers)
    assert_descends_like_autograd(network, chain.problem(), chain, rule(4))


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=7).map(tuple),
    samples=st.none() | st.integers(1, 9),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
    decay=st.sampled_from([0.0, 0.2]),
    decoupled=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
    relu_layers=st.integers(0, 3),
)
def test_descent_is_torch_sgd_whatever_the_shape(
    sizes, samples, momentum, nesterov, decay, decoupled, reduction, relu_layers
):
    chain, depth = Chain(sizes, samples), len(sizes) - 1
    weights, problem = chain.weights(), chain.problem(reduction)
    nesterov = nesterov and momentum > 0
    # Far below what is stable, so that rounding is not amplified.
    lr = 0.2 * min(1.0, stable_lr(problem, depth, weights=weights))
    rates = tuple(0.5 + layer / depth for layer in range(depth))
    network = MLP.from_weights(weights, relu_layers=min(relu_layers, depth - 1))
    assert_descends_like_autograd(
        network, problem, chain, Descent(lr, momentum, nesterov, decay, decoupled, factor_rates=rates)
    )


# --- closed forms


def test_a_step_by_hand():
    # Powers of two only, so that every number is exact: W_1 = W_2 = 1, target 4, gradient (1 − 4)·1 for both.
    network = DeepLinearNetwork.from_weights([[[1.0]], [[1.0]]])
    trajectory = gradient_descent(network, Factorization([[4.0]], "sum"), Descent(lr=0.25), steps=1)
    assert [weight.item() for weight in network.weights] == [1.75, 1.75]
    assert trajectory["loss"].values.tolist() == [4.5, 0.5 * (1.75**2 - 4) ** 2]


def test_one_newton_step():
    target = gaussian(3, 5)
    network = DeepLinearNetwork((5, 3), generator=seeded(1))
    gradient_descent(network, Factorization(target, "sum"), Descent(lr=1.0), steps=1)
    assert_close(network.end_to_end(), target, **ROUNDING)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_one_layer_is_a_linear_recursion(decay):
    # M(t) − M* = (M(0) − M*)(I − η(XXᵀ + λI))^t with the ridge solution M* = Y Xᵀ (XXᵀ + λI)⁻¹.
    inputs, targets, start, lr, steps = gaussian(3, 8), gaussian(2, 8, seed=1), gaussian(2, 3, seed=2), 0.02, 50
    curvature = inputs @ inputs.T + decay * torch.eye(3, dtype=torch.float64)
    solution = torch.linalg.solve(curvature, inputs @ targets.T).T
    step = torch.eye(3, dtype=torch.float64) - lr * curvature
    expected = solution + (start - solution) @ torch.linalg.matrix_power(step, steps)
    network = DeepLinearNetwork.from_weights([start])
    gradient_descent(network, Regression(inputs, targets, "sum"), Descent(lr=lr, weight_decay=decay), steps)
    assert_close(network.end_to_end(), expected, **ROUNDING)


def test_decoupled_decay_of_one_layer_is_a_linear_recursion():
    # AdamW takes the gradient before it shrinks: W ← (1 − ηλ) W − η (W − Y).
    target, start, lr, decay, steps = gaussian(2, 2), gaussian(2, 2, seed=1), 0.125, 0.5, 30
    factor = 1 - lr * decay - lr
    limit = lr * target / (1 - factor)
    network = DeepLinearNetwork.from_weights([start])
    descent = Descent(lr=lr, weight_decay=decay, decoupled=True)
    gradient_descent(network, Factorization(target, "sum"), descent, steps)
    assert_close(network.end_to_end(), limit + factor**steps * (start - limit), **ROUNDING)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_on_a_parabola_is_a_two_dimensional_recursion(nesterov):
    # (x, v) with curvature 1: v ← μv + x, then x ← x − η v, or x ← x − η(x + μ v) for Nesterov.
    lr, mu, steps = 0.3, 0.8, 40
    step = np.array([[1 - lr, -lr * mu], [1.0, mu]])
    if nesterov:
        step[0] = [1 - lr - lr * mu, -lr * mu**2]
    expected = np.linalg.matrix_power(step, steps) @ [1.0, 0.0]
    network = DeepLinearNetwork.from_weights([[[1.0]]])
    gradient_descent(network, Factorization([[0.0]], "sum"), Descent(lr, mu, nesterov), steps)
    assert network.end_to_end().item() == pytest.approx(expected[0], rel=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_an_aligned_start_decouples_into_scalars(depth):
    # With diagonal factors every direction i obeys w ← w − η (w^L − σ_i) w^(L−1) alone (Saxe et al. 2014).
    sigma, lr, steps = np.array([2.0, 1.0, 0.5]), 0.05, 60
    w = np.full(3, 0.7)
    for _ in range(steps):
        w = w - lr * (w**depth - sigma) * w ** (depth - 1)
    left, right = (random_orthogonal(3, 3, generator=seeded(seed)) for seed in (1, 2))
    rotations = [right, *[torch.eye(3, dtype=torch.float64)] * (depth - 1), left]
    network = DeepLinearNetwork.from_weights(0.7 * after @ before.T for before, after in pairwise(rotations))
    problem = Factorization(left @ torch.diag(torch.from_numpy(sigma)) @ right.T, "sum")
    gradient_descent(network, problem, Descent(lr=lr), steps)
    for before, after, weight in zip(rotations[:-1], rotations[1:], network.weights, strict=True):
        assert_close(after.T @ weight @ before, torch.diag(torch.from_numpy(w)), **ROUNDING)


def test_rotating_every_layer_rotates_the_run():
    chain = Chain((4, 5, 3), 7)
    inputs, targets = chain.data()
    rotations = [random_orthogonal(size, size, generator=seeded(size)) for size in chain.sizes]
    plain = DeepLinearNetwork.from_weights(chain.weights())
    turned = DeepLinearNetwork.from_weights(
        rotations[layer + 1] @ weight @ rotations[layer].T for layer, weight in enumerate(plain.weights)
    )
    descent = Descent(lr=0.1, momentum=0.5, weight_decay=0.1)
    gradient_descent(plain, Regression(inputs, targets), descent, 30)
    gradient_descent(turned, Regression(rotations[0] @ inputs, rotations[-1] @ targets), descent, 30)
    for layer, (weight, other) in enumerate(zip(plain.weights, turned.weights, strict=True)):
        assert_close(rotations[layer + 1] @ weight @ rotations[layer].T, other, **ROUNDING)


def test_a_network_learns_to_the_last_digit():
    problem = Factorization(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), "sum")
    network = DeepLinearNetwork((3, 3, 3), 0.5, generator=seeded())
    trajectory = gradient_descent(network, problem, Descent(lr=0.1), 2000, every=2000)
    assert trajectory["loss"][-1] < 1e-28
    assert_close(network.end_to_end(), problem.solution(), rtol=0, atol=1e-14)


# --- precision


@pytest.mark.parametrize("build", [DeepLinearNetwork.from_weights, MLP.from_weights])
def test_float32_networks_stay_float32(build):
    chain = CHAINS["N > d"]
    weights = chain.weights()
    single, double = build([weight.float() for weight in weights]), build(weights)
    curves = [gradient_descent(network, chain.problem(), Descent(lr=0.05), 20) for network in (single, double)]
    assert {weight.dtype for weight in single.weights} == {torch.float32}
    for weight, expected in zip(single.weights, double.weights, strict=True):
        assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(curves[0]["loss"], curves[1]["loss"], rtol=1e-5)
    assert curves[0].attrs["dtype"] == "float32"


def test_a_float32_problem_is_taken_to_the_networks_precision():
    inputs, targets = (data.float() for data in CHAINS["N > d"].data())
    networks = [DeepLinearNetwork.from_weights(CHAINS["N > d"].weights()) for _ in range(2)]
    gradient_descent(networks[0], Regression(inputs, targets), Descent(lr=0.05), 20)
    gradient_descent(networks[1], Regression(inputs.double(), targets.double()), Descent(lr=0.05), 20)
    for weight, expected in zip(networks[0].weights, networks[1].weights, strict=True):
        assert_close(weight, expected, rtol=0, atol=0)
