import pytest
import torch
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.dynamics import DivergenceError, ScaledDescent, stable_lr
from lowdyn.networks import MLP
from lowdyn.problems import Completion, Factorization, Regression, low_rank_target
from tests.cases import gaussian, seeded
from tests.oracles import descend_scaled

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def spectral_start(target, mask, rank):
    u, values, vt = torch.linalg.svd(mask * target / mask.double().mean())
    root = values[:rank].sqrt()
    return root[:, None] * vt[:rank], u[:, :rank] * root


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_it_is_scaled_gd(shape):
    m, n = shape
    target, mask = low_rank_target(m, n, rank=2, generator=seeded()), torch.rand(m, n, generator=seeded(1)) < 0.6
    first, last = spectral_start(target, mask, 2)
    expected = descend_scaled(last, first.mT, target, mask, eta=0.5, steps=15)
    for reduction, lr in (("mean", 0.5 * m * n), ("sum", 0.5 / float(mask.double().mean()))):
        network, problem = DeepLinearNetwork.from_weights([first, last]), Completion(target, mask, reduction)
        assert stable_lr(problem, 2, scaled=True) == pytest.approx(2 * lr)
        gradient_descent(network, problem, ScaledDescent(lr=lr), 15)
        assert_close(network.end_to_end(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["completion", "factorization", "regression"])
def test_another_basis_of_the_inner_space_changes_no_product(kind):
    target, mixing = low_rank_target(9, 8, rank=2, generator=seeded()), gaussian(2, 2, seed=4)
    problem = {
        "completion": lambda: Completion(target, gaussian(9, 8) < 1),
        "factorization": lambda: Factorization(target),
        "regression": lambda: Regression(gaussian(8, 12), gaussian(9, 12)),
    }[kind]()
    first, last = gaussian(2, 8, seed=2), gaussian(9, 2, seed=3)
    plain = DeepLinearNetwork.from_weights([first, last])
    mixed = DeepLinearNetwork.from_weights([torch.linalg.solve(mixing, first), last @ mixing])
    for network in (plain, mixed):
        gradient_descent(network, problem, ScaledDescent(lr=1.0), 10)
    assert_close(plain.end_to_end(), mixed.end_to_end(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_the_condition_number_costs_no_steps(condition):
    u, v = (torch.linalg.qr(gaussian(30, 2, seed=seed))[0] for seed in (1, 2))
    target = u @ torch.diag(torch.tensor([1.0, 1 / condition], dtype=torch.float64)) @ v.mT
    problem = Factorization(target, "sum")
    network = DeepLinearNetwork.from_weights([v.mT * 0.9, u @ (u.mT @ target @ v)])
    gradient_descent(network, problem, ScaledDescent(lr=0.5), 60, every=60)
    assert float((network.end_to_end() - target).norm()) < 1e-12 / condition * condition
    assert float((u[:, 1:].mT @ network.end_to_end() @ v[:, 1:] * condition - 1).abs()) < 1e-10


def test_twice_the_stable_rate_is_too_much():
    problem = Factorization(low_rank_target(9, 8, rank=2, generator=seeded()), "sum")
    u, values, vt = torch.linalg.svd(problem.targets)
    for share, stays in ((0.9, True), (1.1, False)):
        network = DeepLinearNetwork.from_weights([vt[:2] * 1.01, u[:, :2] * values[:2]])
        rule = ScaledDescent(lr=share * stable_lr(problem, 2, scaled=True))
        start = float(problem.loss(network.end_to_end()))
        last = gradient_descent(network, problem, rule, 200, every=200)["loss"][-1]
        assert (float(last) < 1e-6 * start) == stays
    with pytest.raises(DivergenceError, match="is about 1;"):
        gradient_descent(network, problem, ScaledDescent(lr=3.0), 10_000, every=10_000)


def test_runs_side_by_side_are_the_single_ones():
    target, mask = gaussian(3, 8, 9), torch.rand(3, 8, 9, generator=seeded(1)) < 0.8
    network = DeepLinearNetwork((9, 2, 8), generator=seeded(), runs=3)
    alone = [network.run(index) for index in range(3)]
    rates = [10.0, 20.0, 30.0]
    losses = gradient_descent(network, Completion(target, mask), ScaledDescent(rates, momentum=0.3), 12)["loss"].values
    for index, one in enumerate(alone):
        problem = Completion(target[index], mask[index])
        expected = gradient_descent(one, problem, ScaledDescent(rates[index], momentum=0.3), 12)["loss"].values
        assert_close(losses[:, index], expected, rtol=1e-9, atol=0)
        assert_close(network.weights[0][index], one.weights[0], rtol=1e-8, atol=1e-10)


def test_runs_end_one_by_one():
    target = torch.stack([low_rank_target(8, 8, rank=2, generator=seeded(seed)) for seed in (1, 2)])
    u, values, vt = torch.linalg.svd(target)
    network = DeepLinearNetwork.from_weights([vt[:, :2] * 1.1, u[:, :, :2] * values[:, None, :2]])
    trajectory = gradient_descent(network, Factorization(target, "sum"), ScaledDescent([0.5, 0.1]), 500, tol=1e-20)
    assert bool(torch.isnan(torch.from_numpy(trajectory["loss"].values)).any())
    assert_close(network.end_to_end(), target, rtol=0, atol=1e-9)


def test_what_has_no_direction_is_refused():
    target, mask = gaussian(8, 9), gaussian(8, 9, seed=1) < 0
    problem, rule = Completion(target, mask), ScaledDescent(lr=1.0)
    with pytest.raises(ValueError, match="two factors W_2 W_1 without ReLU, got a DeepLinearNetwork of 3 factors"):
        gradient_descent(DeepLinearNetwork((9, 2, 2, 8), generator=seeded()), problem, rule, 1)
    with pytest.raises(ValueError, match="MLP of 2 factors"):
        gradient_descent(MLP((9, 3, 8), generator=seeded(), bias=False, dtype=torch.float64), problem, rule, 1)
    first, last, nothing = gaussian(2, 9), gaussian(8, 2), torch.zeros(8, 2, dtype=torch.float64)
    for start, message in (
        ([first[:1].expand(2, 9), last], "W_1 W_1ᵀ is singular"),
        ([first, nothing], "W_2ᵀ W_2 is singular"),
        ([torch.stack([first, first]), torch.stack([last, nothing])], r"in runs \[1\]"),
    ):
        network = DeepLinearNetwork.from_weights(start)
        with pytest.raises(ValueError, match=message):
            gradient_descent(network, problem, rule, 1)
    whole = Factorization(low_rank_target(24, 24, rank=2, generator=seeded()))
    small = reduce_network(DeepLinearNetwork((24, 24, 24), 0.1, generator=seeded()), whole)
    with pytest.raises(ValueError, match="ReducedNetwork"):
        gradient_descent(small, whole, rule, 1)


def test_it_is_a_descent_with_all_its_checks():
    assert isinstance(ScaledDescent(0.5), Descent)
    with pytest.raises(ValueError, match="at least 0"):
        ScaledDescent(lr=-1.0)
