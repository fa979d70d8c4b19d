"""Descent of several networks side by side: each run is the run alone."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lowdyn import DeepLinearNetwork, Descent, gradient_descent
from lowdyn.problems import Factorization, Regression, low_rank_target
from tests.cases import CHAINS, ROUNDING, RULES, seeded

pytestmark = pytest.mark.usefixtures("nothing_global_changes")

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


def test_per_run_rates_of_full_networks_equal_single_runs():
    generator = seeded()
    problem = Factorization(low_rank_target(8, 8, rank=2, generator=generator))
    network = DeepLinearNetwork((8, 8, 8), 0.3, generator=generator, runs=2)
    singles = [network.run(0), network.run(1)]
    gradient_descent(network, problem, Descent(lr=(0.1, 0.4), weight_decay=1e-3), 50)
    for run, (single, rate) in enumerate(zip(singles, (0.1, 0.4), strict=True)):
        gradient_descent(single, problem, Descent(lr=rate, weight_decay=1e-3), 50)
        torch.testing.assert_close(network.run(run).weights, single.weights, rtol=1e-12, atol=1e-14)
