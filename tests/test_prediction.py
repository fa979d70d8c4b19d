import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.special import hyp2f1
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.dynamics.prediction import escape_steps, saxe_solution
from lowdyn.linalg import random_orthogonal, whiten
from lowdyn.problems import FactoredTarget, Factorization, Regression, low_rank_target
from tests.cases import gaussian, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def one_mode(width, value=1.0, *, seed=0):
    """A target value · u vᵀ of random directions, and the two."""
    u, v = (random_orthogonal(width, 1, generator=seeded(seed + side))[:, 0] for side in (0, 1))
    return value * torch.outer(u, v), u, v


class Strength:
    """Probe: uᵀ W_{L:1} v."""

    coords: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, u, v):
        self.u, self.v = u, v

    def begin(self, model):
        self.model = model
        return self

    def __call__(self, step):
        return {"strength": ((), float(self.u @ self.model.end_to_end() @ self.v))}


def measured_escape(network, problem, lr, *, predicted, fraction=0.5):
    """The step, between records, at which descent has learned ``fraction`` of the leading mode."""
    left, values, right = problem.factors()
    stretch = 1.0 if problem.inputs is None else float((problem.inputs.mT @ right[:, 0]).square().sum())
    threshold = fraction * float(values[0]) / stretch
    probe = Strength(left[:, 0], right[:, 0])
    trajectory = gradient_descent(
        network, problem, Descent(lr), int(2 * predicted), probe, max(1, int(predicted / 500))
    )
    seen, steps = trajectory["strength"].values, trajectory["step"].values
    after = int(np.argmax(seen > threshold))
    assert after > 0
    return np.interp(threshold, seen[after - 1 : after + 1], steps[after - 1 : after + 1])


# --- escape: truths


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
@pytest.mark.parametrize("value", [0.3, 4.0])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_an_aligned_start_takes_the_integral_of_its_scalar_law(depth, value, fraction):
    problem = Factorization([[value]], "sum")
    end = (fraction * value) ** (1 / depth)
    # In ln a, over which the integrand is smooth.
    expected, _ = quad(
        lambda log: math.exp((2 - depth) * log) / (value - math.exp(depth * log)), math.log(0.05), math.log(end)
    )
    seen = escape_steps(problem, depth, 0.05, 0.01, overlap=1.0, fraction=fraction)
    assert seen == pytest.approx(expected / 0.01, rel=1e-7)


def test_an_aligned_start_takes_its_closed_form():
    def antiderivative(x, depth):
        return -(x ** (2 - depth)) / (depth - 2) + x**2 / 2 * hyp2f1(1, 2 / depth, 1 + 2 / depth, x**depth)

    for depth in (3, 5):
        start, end = 1e-3 / 4 ** (1 / depth), 0.5 ** (1 / depth)
        expected = (antiderivative(end, depth) - antiderivative(start, depth)) / (0.02 * 4 ** (2 - 2 / depth))
        seen = escape_steps(Factorization([[4.0]], "sum"), depth, 1e-3, 0.02, overlap=1.0)
        assert seen == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("overlap", [-0.9, 0.0, 0.5, 1.0])
def test_two_layers_take_a_logarithm(overlap):
    # While the product is small the two factors obey a linear law, whose growing part is (1 + overlap)/2 of the start.
    seen = escape_steps(Factorization([[4.0]], "sum"), 2, 1e-6, 0.01, overlap=overlap)
    assert seen == pytest.approx(math.log(4 / (1e-12 * (1 + overlap) / 2)) / (2 * 0.01 * 4), rel=1e-9)


@pytest.mark.parametrize(("depth", "kappa"), [(3, 1.20), (4, 1.28), (5, 1.32), (6, 1.35)])
def test_the_leading_order_is_the_documented_law(depth, kappa):
    for overlap, constant, digits in ((1.0, 1.0, 1e-4), (0.0, kappa, 5e-3)):
        seen = escape_steps(Factorization([[3.0]], "sum"), depth, 1e-5, 0.1, overlap=overlap)
        assert seen * (depth - 2) * 0.1 * 3 * 1e-5 ** (depth - 2) == pytest.approx(constant, rel=digits)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("overlap", [-0.7, 0.0, 0.4])
def test_it_is_the_gradient_flow_of_the_weights_themselves(depth, overlap):
    v = np.array([1.0, 0.0])
    u = np.array([overlap, math.sqrt(1 - overlap**2)])
    target = 2.0 * np.outer(u, v)

    def product(weights):
        return np.eye(2) if len(weights) == 0 else np.linalg.multi_dot([np.eye(2), *weights[::-1], np.eye(2)])

    def flow(_, flat):
        weights = flat.reshape(depth, 2, 2)
        error = product(weights) - target
        return -np.stack(
            [product(weights[layer + 1 :]).T @ error @ product(weights[:layer]).T for layer in range(depth)]
        ).ravel()

    def learned(_, flat):
        return u @ product(flat.reshape(depth, 2, 2)) @ v - 1.0

    learned.terminal = True
    start = np.stack([0.2 * np.eye(2)] * depth).ravel()
    truth = solve_ivp(flow, (0, 1e4), start, "DOP853", events=learned, rtol=1e-10, atol=1e-12)
    seen = escape_steps(Factorization(target, "sum"), depth, 0.2, 1e-3, overlap=overlap)
    assert seen == pytest.approx(1e3 * truth.t[-1], rel=1e-7)


# --- escape: against descent


@pytest.mark.parametrize(("depth", "init_scale"), [(2, 0.01), (3, 0.05), (4, 0.15)])
@pytest.mark.parametrize("seed", [0, 1])
def test_descent_escapes_when_the_overlap_says(depth, init_scale, seed):
    target, u, v = one_mode(20, seed=seed)
    problem = Factorization(target, "sum")
    network = DeepLinearNetwork([20] * (depth + 1), init_scale, generator=seeded(seed + 7))
    overlap = float(u @ network.end_to_end() @ v) / init_scale**depth
    predicted = escape_steps(problem, depth, init_scale, 0.02, overlap=overlap)
    assert measured_escape(network, problem, 0.02, predicted=predicted) == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize(("depth", "init_scale"), [(2, 0.01), (3, 0.03), (4, 0.1)])
@pytest.mark.parametrize("outputs", [30, 10])
def test_a_random_start_escapes_within_15_percent(depth, init_scale, outputs):
    target = low_rank_target(outputs, 30, rank=3, generator=seeded())
    problem = Factorization(target)
    lr = 0.05 * outputs * 30 / float(torch.linalg.matrix_norm(target, 2)) ** (2 - 2 / depth)
    predicted = escape_steps(problem, depth, init_scale, lr)
    network = DeepLinearNetwork((*[30] * depth, outputs), init_scale, generator=seeded(1))
    assert measured_escape(network, problem, lr, predicted=predicted) == pytest.approx(predicted, rel=0.15)


@pytest.mark.parametrize("samples", [25, 10])  # white inputs, or fewer samples than inputs
def test_inputs_count_with_their_scale(samples):
    inputs = 1.5 * random_orthogonal(20, samples, generator=seeded())
    _, u, v = one_mode(20)
    if samples < 20:
        v = inputs @ (inputs.T @ v)
        v = v / v.norm()
    problem = Regression(inputs, torch.outer(u, v) @ inputs)
    network = DeepLinearNetwork([20] * 4, 0.05, generator=seeded(7))
    overlap = float(u @ network.end_to_end() @ v) / 0.05**3
    predicted = escape_steps(problem, 3, 0.05, 2.0, overlap=overlap)
    assert measured_escape(network, problem, 2.0, predicted=predicted) == pytest.approx(predicted, rel=0.02)


def test_the_published_factorization_escapes_near_its_published_step():
    # d = 1000, rank 10, L = 3, ε = 1e-3, lr 1e3 on the mean: published 20 123 steps to 1e-6, all ten modes learned.
    basis = torch.eye(1000, dtype=torch.float64)[:, :10]
    values = torch.linspace(63.0, 60.0, 10, dtype=torch.float64)
    assert 18_000 < escape_steps(FactoredTarget(basis, values, basis), 3, 1e-3, 1e3) < 20_123


def test_the_scale_of_the_problem_is_part_of_the_rate():
    target = gaussian(4, 4)
    seen = escape_steps(Factorization(target), 3, 0.1, 1.6), escape_steps(Factorization(target, "sum"), 3, 0.1, 0.1)
    assert seen[0] == pytest.approx(seen[1], rel=1e-12)


def test_edges_of_escape():
    problem = Factorization([[4.0]], "sum")
    assert escape_steps(problem, 3, 1.5, 0.1, overlap=1.0) == 0.0  # 1.5³ is beyond half of 4
    assert escape_steps(problem, 3, 0.1, 0.1, overlap=-1.0) == math.inf
    assert escape_steps(Factorization(torch.zeros(3, 3)), 3, 0.1, 0.1) == math.inf
    assert escape_steps(problem, 6, 1e-90, 1.0) == math.inf  # beyond the largest number
    assert 1e12 < escape_steps(problem, 3, 1e-13, 1.0) < math.inf
    assert escape_steps(problem, 3, 0.1, 0.1, overlap=-0.999999) > escape_steps(problem, 3, 0.1, 0.1, overlap=-0.9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 1}, ValueError, "depth must be at least 2"),
        ({"depth": 2.5}, TypeError, "depth must be a whole number"),
        ({"init_scale": 0.0}, ValueError, "init_scale must be at least"),
        ({"lr": 0.0}, ValueError, "lr must be at least"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"overlap": -1.1}, ValueError, "overlap must be at least -1"),
        ({"overlap": 1.1}, ValueError, "overlap must be below 1"),
        ({"fraction": 1.0}, ValueError, "fraction must be below 1"),
        ({"problem": Factorization(gaussian(2, 3, 3))}, ValueError, "holds 2 runs"),
        ({"problem": Regression(gaussian(3, 9), gaussian(3, 9))}, ValueError, "not white .* lowdyn.linalg.whiten"),
    ],
)
def test_what_has_no_escape_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        escape_steps(**{"problem": Factorization([[4.0]]), "depth": 3, "init_scale": 0.1, "lr": 0.1} | arguments)


# --- two factors in closed form


def test_the_closed_form_is_the_published_one_and_solves_its_law():
    target = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    solution = saxe_solution(Factorization(target, "sum"), init_scale=0.1, lr=0.05)
    steps = torch.linspace(0, 200, 9, dtype=torch.float64)
    seen = solution.strengths(steps)
    assert seen.shape == (9, 3)
    for mode, s in enumerate((3.0, 1.0, 0.5)):
        growth = (2 * s * 0.05 * steps).exp()
        assert_close(seen[:, mode], s * growth / (growth - 1 + s / 0.01), rtol=1e-13, atol=0)
    h = 1e-4
    slope = (solution.strengths(40 + h) - solution.strengths(40 - h)) / (2 * h)
    now = solution.strengths(40)
    assert_close(slope, 2 * 0.05 * now * (solution.values - now), rtol=1e-7, atol=0)


def test_it_starts_at_the_start_and_ends_at_the_solution():
    inputs, _ = whiten(gaussian(4, 12), scale=2.5)
    problem = Regression(inputs, gaussian(3, 12, seed=1))
    solution = saxe_solution(problem, init_scale=0.2, lr=0.1)
    assert_close(solution.strengths(0), torch.full((3,), 0.04, dtype=torch.float64), rtol=1e-12, atol=0)
    assert_close(solution.end_to_end(1e9), problem.solution(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["factorization", "white inputs", "orthonormal samples"])
@pytest.mark.parametrize("hidden", [None, 7])
def test_descent_approaches_it_at_first_order(kind, hidden):
    if kind == "factorization":
        problem = Factorization(gaussian(4, 5))
    elif kind == "white inputs":
        problem = Regression(whiten(gaussian(5, 12), scale=1.5)[0], gaussian(4, 12, seed=1), "sum")
    else:
        problem = Regression(2 * random_orthogonal(9, 5, generator=seeded()), gaussian(4, 5, seed=1))
    rank = len(problem.factors()[1])
    mixing = None if hidden is None else random_orthogonal(hidden, rank, generator=seeded(3))
    errors = []
    for steps in (200, 400, 800):
        # The same time, when the leading mode is learned and the others are on their way.
        solution = saxe_solution(problem, init_scale=0.3, lr=1.0)
        lr = 1.5 / (float(solution.values[0]) * solution.rate) / steps
        solution = saxe_solution(problem, init_scale=0.3, lr=lr)
        network = solution.network(mixing=mixing)
        gradient_descent(network, problem, Descent(lr), steps, every=steps)
        errors.append(float((network.end_to_end() - solution.end_to_end(steps)).norm()))
        for weight, expected in zip(network.weights, solution.network(steps, mixing).weights, strict=True):
            assert_close(weight, expected, rtol=0, atol=20 / steps)
    assert errors[0] < 0.05 * float(problem.solution().norm())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.03)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.015)


def test_modes_stay_apart():
    problem = Factorization(gaussian(4, 4), "sum")
    solution = saxe_solution(problem, init_scale=0.1, lr=0.01)
    network = solution.network()
    gradient_descent(network, problem, Descent(0.01), 300, every=300)
    mixed = solution.left.T @ network.end_to_end() @ solution.right
    assert float((mixed - torch.diag(mixed.diagonal())).abs().max()) < 1e-13


def test_a_mode_escapes_when_its_closed_form_is_half_way():
    problem = Factorization(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), "sum")
    step = escape_steps(problem, 2, 0.01, 0.02, overlap=1.0)
    assert float(saxe_solution(problem, 0.01, 0.02).strengths(step)[0]) == pytest.approx(2.0, rel=1e-8)


@pytest.mark.parametrize(
    ("problem", "init_scale", "lr", "message"),
    [
        (Factorization(torch.zeros(2, 2)), 0.1, 0.1, "rank 0"),
        (Factorization(gaussian(2, 2)), 0.0, 0.1, "init_scale must be at least"),
        (Factorization(gaussian(2, 2)), 0.1, -1.0, "lr must be at least"),
        (Factorization(gaussian(3, 2, 2)), 0.1, 0.1, "holds 3 runs"),
        (Regression(gaussian(2, 8), gaussian(2, 8, seed=1)), 0.1, 0.1, "not white"),
    ],
)
def test_what_has_no_closed_form_is_refused(problem, init_scale, lr, message):
    with pytest.raises(ValueError, match=message):
        saxe_solution(problem, init_scale, lr)


def test_a_mixing_that_is_not_orthonormal_is_refused():
    solution = saxe_solution(Factorization(gaussian(3, 3)), 0.1, 0.1)
    for mixing in (gaussian(5, 3), torch.eye(5, dtype=torch.float64)[:, :2]):
        with pytest.raises(ValueError, match=r"mixing must be \(hidden, 3\)"):
            solution.network(mixing=mixing)
