"""Descent on observed entries: torch's SGD, for dense and sparse input, and the largest stable rate."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent
from lowdyn.dynamics import DivergenceError, stable_lr
from lowdyn.dynamics.chain import Chain, Part
from lowdyn.dynamics.split import splits
from lowdyn.networks import narrowest_split, normal, product_of
from lowdyn.problems import Completion, low_rank_target
from tests.cases import RULES, gaussian, seeded
from tests.observed import both_forms, seen, stored
from tests.oracles import descend_by_autograd

pytestmark = pytest.mark.usefixtures("nothing_global_changes")


def sgd(network, problem, descent, steps):
    dense = problem.dense()
    identity = torch.eye(problem.shape[1], dtype=dense.dtype)
    return descend_by_autograd(
        network.weights, identity, dense.targets, descent, steps, scale=dense.scale, mask=dense.mask
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sizes", [(9, 2, 8), (8, 3, 2, 3, 9), (8, 2, 2, 2, 8), (6, 12, 9), (3, 4, 8)], ids=str)
def test_descent_on_observed_entries_is_sgd(sizes, rule):
    depth = len(sizes) - 1
    _, problem = both_forms(sizes[-1], sizes[0])
    network = DeepLinearNetwork(sizes, 0.7, generator=seeded(4))
    assert splits(Part(network.weights, problem))
    weights, losses = sgd(network, problem, rule(depth), 20)
    trajectory = gradient_descent(network, problem, rule(depth), 20)
    assert_close(trajectory["loss"].values, np.array(losses), rtol=1e-10, atol=1e-14)
    for one, other in zip(network.weights, weights, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(12, 2, 2, 10), (10, 7, 12), (8, 9)], ids=str)
def test_dense_and_sparse_input_train_alike(sizes):
    target, mask = gaussian(sizes[-1], sizes[0]), seen(sizes[-1], sizes[0])
    dense, listed = Completion(target, mask), Completion.from_sparse(stored(target, mask))
    networks = [DeepLinearNetwork(sizes, 0.5, start=normal, generator=seeded()) for _ in range(3)]
    problems = [dense, listed if len(sizes) > 2 else listed.dense(), dense]
    rule = Descent(0.3, momentum=0.5)
    for network, problem in zip(networks[:2], problems[:2], strict=True):
        gradient_descent(network, problem, rule, 30)
    gradient_descent(networks[2], dense, rule, 30, every=7, record=Spectra())  # looks change nothing
    for one, two, three in zip(*(network.weights for network in networks), strict=True):
        assert_close(one, two, rtol=1e-11, atol=1e-13)
        assert torch.equal(one, three)


def test_a_run_goes_on_where_it_stopped_and_is_seen_where_it_is():
    _, problem = both_forms(12, 10)
    once, twice = (DeepLinearNetwork((10, 2, 12), 0.5, generator=seeded()) for _ in range(2))
    gradient_descent(once, problem, Descent(0.5), 40)
    for _ in range(2):
        trajectory = gradient_descent(twice, problem, Descent(0.5), 20)
        assert trajectory["loss"][-1] == pytest.approx(float(problem.dense().loss(twice.end_to_end())), rel=1e-13)
    assert all(torch.equal(one, two) for one, two in zip(once.weights, twice.weights, strict=True))


def test_frozen_outer_factors_stay_to_the_bit_and_cost_no_gradient():
    _, problem = both_forms(12, 12)
    network = DeepLinearNetwork((12, 2, 2, 2, 12), 0.5, generator=seeded())
    before = [weight.clone() for weight in network.weights]
    problem.entries.__dict__["by_column"] = None  # that of the first factor would need it
    descent = Descent(0.5, momentum=0.9, weight_decay=0.1, factor_rates=(0, 1, 1, 0))
    gradient_descent(network, problem, descent, 10)
    moved = [not torch.equal(one, two) for one, two in zip(before, network.weights, strict=True)]
    assert moved == [False, True, True, False]


@pytest.mark.parametrize("sizes", [(12, 2, 2, 12), (12, 12, 12, 12)], ids=["split", "matrices"])
@pytest.mark.parametrize(("rates", "trained"), [((0, 1, 0), 1), ((0, 0, 1), 1), ((1, 0, 0), 1), ((0, 0, 0), 0)])
def test_only_factors_that_train_are_updated(monkeypatch, sizes, rates, trained):
    updated, update = [], Chain._update
    monkeypatch.setattr(Chain, "_update", lambda self, *given: updated.append(update(self, *given)))
    network = DeepLinearNetwork(sizes, 0.5, generator=seeded())
    before = [weight.clone() for weight in network.weights]
    problem = both_forms(12, 12)[sizes[1] < 12]
    gradient_descent(network, problem, Descent(0.5, factor_rates=rates), 5)
    assert len(updated) == 5 * trained
    for weight, start, rate in zip(network.weights, before, rates, strict=True):
        assert torch.equal(weight, start) == (rate == 0)


def test_rows_and_columns_without_entries_keep_their_factors():
    target, mask = gaussian(9, 10), seen(9, 10)
    mask[3], mask[:, 4] = False, False
    for problem in (Completion(target, mask), Completion.from_sparse(stored(target, mask))):
        network = DeepLinearNetwork((10, 2, 9), 0.5, generator=seeded())
        first, last = (weight.clone() for weight in network.weights)
        gradient_descent(network, problem, Descent(0.5), 10)
        assert torch.equal(network.weights[0][:, 4], first[:, 4])
        assert torch.equal(network.weights[1][3], last[3])
        assert not torch.equal(network.weights[1][2], last[2])


@given(shared=st.sampled_from(["target", "mask", "nothing"]), reduction=st.sampled_from(["mean", "sum"]))
def test_problems_side_by_side_are_the_single_ones(shared, reduction):
    runs, m, n = 3, 8, 9
    target = gaussian(m, n) if shared == "target" else gaussian(runs, m, n)
    mask = seen(m, n) if shared == "mask" else seen(runs, m, n)
    problem = Completion(target, mask, reduction)
    network = DeepLinearNetwork((n, 2, m), 0.5, generator=seeded(), runs=runs)
    single = [
        Completion(target if target.ndim == 2 else target[i], mask if mask.ndim == 2 else mask[i], reduction)
        for i in range(runs)
    ]
    alone = [network.run(i) for i in range(runs)]
    rates = [0.02, 0.01, 0.03]
    assert problem.runs == runs
    trajectory = gradient_descent(network, problem, Descent(rates), 20)
    for index, (one, own) in enumerate(zip(alone, single, strict=True)):
        expected = gradient_descent(one, own, Descent(rates[index]), 20)
        assert_close(trajectory["loss"].values[:, index], expected["loss"].values, rtol=1e-11, atol=0)
        for both, weight in zip(network.weights, one.weights, strict=True):
            assert_close(both[index], weight, rtol=1e-11, atol=1e-13)
        chosen = problem.select(torch.tensor([index]))
        assert_close(chosen.loss(one.end_to_end()[None])[0], own.loss(one.end_to_end()), rtol=1e-13, atol=0)
        assert_close(chosen.gradient(one.end_to_end()[None])[0], own.gradient(one.end_to_end()), rtol=1e-12, atol=1e-15)
    assert stable_lr(problem, 2) <= min(stable_lr(own, 2) for own in single) * (1 + 1e-12)
    loss, of_left, _ = problem.factor_gradients(network.weights[1], network.weights[0])
    one_loss, one_left, _ = single[1].factor_gradients(network.weights[1][1], network.weights[0][1])
    assert_close(loss[1], one_loss, rtol=1e-12, atol=0)
    assert_close(of_left[1], one_left, rtol=1e-12, atol=1e-15)


def test_runs_end_one_by_one():
    problem = Completion(gaussian(2, 6, 6), seen(2, 6, 6, fraction=0.9))
    network = DeepLinearNetwork((6, 6, 6), 0.8, generator=seeded(), runs=2)
    trajectory = gradient_descent(network, problem, Descent([2.0, 0.5]), 4000, every=10, tol=1e-6)
    assert trajectory.sizes["step"] < 401
    assert bool(np.isnan(trajectory["loss"].values).any())


def test_the_largest_stable_rate_is_named_when_descent_diverges():
    _, problem = both_forms(12, 12)
    network = DeepLinearNetwork((12, 2, 12), 0.5, generator=seeded())
    with pytest.raises(DivergenceError, match="largest stable rate here is about"):
        gradient_descent(network, problem, Descent(1e3), 200)


def test_the_largest_stable_rate_is_near_the_true_one():
    problem = Completion(low_rank_target(40, 40, rank=2, generator=seeded()), seen(40, 40, fraction=0.6))
    rate = stable_lr(problem, 2)
    for share, stays in ((0.6, True), (2.5, False)):
        network = DeepLinearNetwork((40, 2, 40), 0.1, generator=seeded())
        try:
            last = float(gradient_descent(network, problem, Descent(share * rate), 3000, every=3000)["loss"][-1])
        except DivergenceError:
            last = float("inf")
        assert (last < 1e-10) == stays


def test_a_product_is_split_where_it_is_narrowest():
    def weights(*sizes):
        return [torch.zeros(rows, columns) for columns, rows in pairwise(sizes)]

    assert narrowest_split(weights(9, 3, 2, 3, 8)) == 2
    assert narrowest_split(weights(9, 2, 2, 2, 8)) == 1
    assert narrowest_split(weights(8, 2, 2, 2, 9)) == 3
    factors = [gaussian(4, 7), gaussian(3, 4), gaussian(9, 3)]
    assert_close(product_of(factors), factors[2] @ factors[1] @ factors[0], rtol=1e-13, atol=1e-14)
