import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, LayerMetrics, Spectra, gradient_descent
from lowdyn.dynamics import DivergenceError, stable_lr
from lowdyn.linalg import random_orthogonal
from lowdyn.networks import MLP
from lowdyn.problems import Factorization, Regression
from tests.cases import CHAINS, RULES, Chain, balanced_solution, gaussian, seeded
from tests.oracles import descend_by_autograd

pytestmark = pytest.mark.usefixtures("nothing_global_changes")
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

# Twenty steps, a few dozen products each: two orders of summation differ by some hundred units in the last place.
ROUNDING = {"rtol": 1e-12, "atol": 1e-13}


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


# --- runs side by side

RUNS = 4
DATA_PER_RUN = {"shared data": (), "inputs per run": (0,), "targets per run": (1,), "data per run": (0, 1)}


def problems_side_by_side(chain, per_run):
    """Return one problem for all runs and the single problem of each."""
    parts = [torch.stack([chain.data(seed=10 * run)[part] for run in range(RUNS)]) for part in (0, 1)]
    parts = [part if index in per_run else part[0] for index, part in enumerate(parts)]
    kind = Regression if chain.samples is not None else lambda _, targets: Factorization(targets)
    singles = [kind(*(part[run] if part.ndim == 3 else part for part in parts)) for run in range(RUNS)]
    return kind(*parts), singles


@pytest.mark.parametrize("per_run", DATA_PER_RUN.values(), ids=DATA_PER_RUN)
@pytest.mark.parametrize("name", ["one layer", "N > d", "N > d, thin", "N < d, thin", "six layers"])
@pytest.mark.parametrize("rule", ["momentum and decay", "all at once"])
def test_runs_side_by_side_are_the_runs_one_by_one(name, per_run, rule):
    chain = CHAINS[name]
    weights, descent = chain.weights(runs=RUNS), RULES[rule](len(chain.sizes) - 1)
    problem, singles = problems_side_by_side(chain, per_run)
    together = DeepLinearNetwork.from_weights(weights)
    trajectory = gradient_descent(together, problem, descent, 20, every=7)
    assert trajectory["loss"].dims == ("step", "run")
    for run, single in enumerate(singles):
        alone = DeepLinearNetwork.from_weights(weight[run] for weight in weights)
        expected = gradient_descent(alone, single, descent, 20, every=7)
        np.testing.assert_allclose(trajectory["loss"].sel(run=run), expected["loss"], rtol=1e-12)
        for weight, other in zip(together.weights, alone.weights, strict=True):
            assert_close(weight[run], other, **ROUNDING)


@pytest.mark.parametrize("per_run", DATA_PER_RUN.values(), ids=DATA_PER_RUN)
@pytest.mark.parametrize("name", ["N > d, thin", "N < d", "factorization, thin"])
@pytest.mark.parametrize("rule", ["plain", "momentum and decay", "nesterov and decay"])
def test_runs_that_end_at_different_steps_are_the_runs_one_by_one(name, per_run, rule):
    chain = CHAINS[name]
    weights, descent = chain.weights(runs=RUNS), RULES[rule](len(chain.sizes) - 1)
    problem, singles = problems_side_by_side(chain, per_run if chain.samples else tuple({1} & set(per_run)))
    alone = [DeepLinearNetwork.from_weights(weight[run] for weight in weights) for run in range(RUNS)]
    # Between the losses that the runs reach, so that some end on the way and some do not.
    free = DeepLinearNetwork.from_weights(weights)
    tol = float(gradient_descent(free, problem, descent, 25)["loss"].isel(step=slice(5, None)).median())
    together = DeepLinearNetwork.from_weights(weights)
    trajectory = gradient_descent(together, problem, descent, 200, every=5, tol=tol)
    ends = []
    for run, single in enumerate(singles):
        expected = gradient_descent(alone[run], single, descent, 200, every=5, tol=tol)
        loss = trajectory["loss"].sel(run=run)
        ends.append(int(expected["step"][-1]))
        np.testing.assert_allclose(loss.sel(step=expected["step"]), expected["loss"], rtol=1e-10)
        assert bool(loss.where(loss["step"] > ends[-1], drop=True).isnull().all())
        for weight, other in zip(together.weights, alone[run].weights, strict=True):
            assert_close(weight[run], other, rtol=1e-10, atol=1e-12)
    assert len(set(ends)) > 1
    assert int(trajectory["step"][-1]) == max(ends)


def test_a_batch_of_one_run_keeps_its_dimension():
    chain = CHAINS["N > d, thin"]
    weights = chain.weights(runs=1)
    batch, alone = DeepLinearNetwork.from_weights(weights), DeepLinearNetwork.from_weights(w[0] for w in weights)
    curve = gradient_descent(batch, chain.problem(), Descent(lr=0.05), 10)
    expected = gradient_descent(alone, chain.problem(), Descent(lr=0.05), 10)
    assert curve["loss"].shape == (11, 1)
    np.testing.assert_allclose(curve["loss"].sel(run=0), expected["loss"], rtol=1e-12)


# --- what is recorded, and when it ends


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


# --- divergence

STEEP = Factorization(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), "sum")


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


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"tol": -1e-3}, ValueError, "tol must be at least 0"),
        ({"tol": np.nan}, ValueError, "tol must be finite"),
        ({"problem": "sum"}, TypeError, "problem must be a Factorization, Regression or Completion, got str"),
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
