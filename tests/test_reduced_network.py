"""The exact reduction: the small network is the full one, number by number, wherever the theorem applies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdyn import DeepLinearNetwork, Descent, Spectra, gradient_descent, reduce_network
from lowdyn.dynamics import ReducedNetwork, stable_lr
from lowdyn.problems import Factorization, low_rank_target
from tests.cases import seeded
from tests.reducible import KINDS, start

TOLERANCE = 1e-10  # of the largest singular value of each weight: the bound that the reduction claims


class InTorch(ReducedNetwork):
    """The same network, trained by the torch loop: the twin of the compiled one."""

    compiled = False


class EveryEntry:
    """Probe: a copy of every full-width weight at every record."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def begin(self, model):
        self.coords, self.model = {}, model
        return self

    def __call__(self, step: int) -> dict:
        whole = self.model.expand() if isinstance(self.model, ReducedNetwork) else self.model
        self.seen.append([weight.clone() for weight in whole.weights])
        return {}


def largest_difference(whole: list[torch.Tensor], part: list[torch.Tensor]) -> float:
    """Return the largest difference of any entry, over the spectral norm of its weight."""
    return max(
        float((one - other).abs().max() / torch.linalg.matrix_norm(one, 2))
        for one, other in zip(whole, part, strict=True)
    )


rules = st.fixed_dictionaries(
    {},
    optional={
        "momentum": st.sampled_from([0.5, 0.9]),
        "weight_decay": st.sampled_from([1e-4, 1e-3]),
        "decoupled": st.booleans(),
    },
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6)
@given(
    depth=st.integers(2, 6),
    rank=st.integers(1, 3),
    width=st.integers(20, 32),
    scale=st.sampled_from([0.05, 0.3, 0.8]),
    rule=rules,
    nesterov=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_weight_along_the_way(kind, depth, rank, width, scale, rule, nesterov, seed):
    network, problem = start(kind, depth, rank, scale, width=width, seed=seed)
    rule = {**rule, "nesterov": nesterov and "momentum" in rule}
    rate = 0.2 * stable_lr(problem, depth, weights=network.weights)
    small = reduce_network(network, problem)
    descent = Descent(lr=lambda step: rate * (1.0 if step < 2500 else 0.5), **rule)
    started = float(small.loss())
    of_full, of_small = EveryEntry(), EveryEntry()
    of_whole = gradient_descent(network, problem, descent, 4000, record=of_full, every=200)
    of_part = gradient_descent(small, problem, descent, 4000, record=of_small, every=200)
    for whole, part in zip(of_full.seen, of_small.seen, strict=True):
        assert largest_difference(whole, part) <= TOLERANCE
    # Losses agree to rounding of the sum of squares they start from.
    floor = 1e-15 * float(of_whole["loss"][0])
    np.testing.assert_allclose(of_part["loss"], of_whole["loss"], rtol=1e-9, atol=floor)
    assert started == pytest.approx(float(of_whole["loss"][0]), rel=1e-12)
    rest = of_whole["loss"] - float(problem.minimum())
    FALLS.append(float(rest[0] / abs(rest).min()))


def test_rounding_does_not_pile_up_on_a_plateau():
    # Two thousand steps at 0.9995 of the start's loss. Rounded alike at every step, the core's weights drift by 4e-13
    # of their norm there, and the escape makes 3e-12 of it; with what rounding takes carried along it is 1e-14.
    network, problem = start("tall", 6, 3, 0.3, width=26, seed=1631)
    descent = Descent(lr=0.2 * stable_lr(problem, 6, weights=network.weights), weight_decay=1e-4)
    of_full, of_small = EveryEntry(), EveryEntry()
    small = reduce_network(network, problem)
    loss = gradient_descent(network, problem, descent, 3000, record=of_full, every=50)["loss"]
    gradient_descent(small, problem, descent, 3000, record=of_small, every=50)
    assert float(loss.sel(step=1000)) > 0.9995 * float(loss[0])
    assert float(loss[-1]) < 0.3 * float(loss[0])
    worst = max(largest_difference(one, other) for one, other in zip(of_full.seen, of_small.seen, strict=True))
    assert worst <= 1e-13


FALLS: list[float] = []


def test_at_least_half_of_those_runs_learned():
    if len(FALLS) < 10:
        pytest.skip("needs the runs of test_every_weight_along_the_way in the same process")
    assert np.median(FALLS) >= 1e3


@pytest.mark.parametrize("kind", KINDS)
def test_the_runs_do_learn(kind):
    network, problem = start(kind, 3, 2, 0.3)
    small = reduce_network(network, problem)
    rate = 0.3 * stable_lr(problem, 3, weights=network.weights)
    loss = gradient_descent(small, problem, Descent(lr=rate), 6000, every=1000)["loss"] - float(problem.minimum())
    # Samples that the data do not see, and noise, leave a rest; what can be learned is.
    assert float(loss[-1]) < 1e-3 * float(loss[0])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_twin(kind):
    network, problem = start(kind, 4, 2, 0.3)
    descent = Descent(lr=0.2 * stable_lr(problem, 4, weights=network.weights), momentum=0.5, weight_decay=1e-3)
    compiled, twin = reduce_network(network, problem), reduce_network(network, problem)
    twin.__class__ = InTorch
    ours = gradient_descent(compiled, problem, descent, 500, every=100)
    theirs = gradient_descent(twin, problem, descent, 500, every=100)
    torch.testing.assert_close(compiled.inert_scale, twin.inert_scale, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_and_singular_values_are_of_the_full_weights(kind):
    network, problem = start(kind, 3, 2, 0.3)
    small = reduce_network(network, problem)
    gradient_descent(small, problem, Descent(lr=0.2 * stable_lr(problem, 3, weights=network.weights)), 300, every=300)
    whole = small.expand()
    for layer, weight in enumerate(whole.weights, start=1):
        vectors = torch.randn(weight.shape[1], 5, generator=seeded(layer), dtype=torch.float64)
        torch.testing.assert_close(small.apply(layer, vectors), weight @ vectors, rtol=0, atol=1e-13)
        values, counts = small.singular_values(layer)
        ours = values.repeat_interleave(counts).sort(descending=True).values
        expected = torch.linalg.svdvals(weight)[: len(ours)]
        torch.testing.assert_close(ours[: len(expected)], expected, rtol=0, atol=1e-13)


def test_runs_side_by_side_with_their_own_rates_and_ends():
    generator = seeded()
    problem = Factorization(low_rank_target(20, 20, rank=2, generator=generator))
    network = DeepLinearNetwork((20, 20, 20, 20), 0.1, generator=generator, runs=3)
    rates = [fraction * stable_lr(problem, 3) for fraction in (0.1, 0.2, 0.3)]
    many = reduce_network(network, problem)
    trajectory = gradient_descent(many, problem, Descent(lr=rates, momentum=0.5), 4000, every=50, tol=1e-6)
    ends = []
    for run, rate in enumerate(rates):
        alone = reduce_network(network.run(run), problem)
        single = gradient_descent(alone, problem, Descent(lr=rate, momentum=0.5), 4000, every=50, tol=1e-6)
        column = trajectory["loss"].sel(run=run).dropna("step")
        np.testing.assert_allclose(column, single["loss"], rtol=1e-6)
        torch.testing.assert_close(many.run(run).expand().weights, alone.expand().weights, rtol=0, atol=1e-12)
        ends.append(int(column["step"][-1]))
    assert len(set(ends)) == 3  # they did end at different steps


def test_spectra_of_the_reduced_network_are_those_of_the_full_one():
    network, problem = start("between", 3, 2, 0.4)
    descent = Descent(lr=0.2 * stable_lr(problem, 3, weights=network.weights))
    small = reduce_network(network, problem)
    probe = Spectra(top=2, reference=20)
    whole = gradient_descent(network, problem, descent, 200, record=probe, every=20)
    part = gradient_descent(small, problem, descent, 200, record=probe, every=20)
    assert whole.sizes == part.sizes
    for name in whole.data_vars:
        # An angle is known to eps·σ_1/gap, here some 1e-12.
        np.testing.assert_allclose(part[name], whole[name], rtol=0, atol=1e-11)
