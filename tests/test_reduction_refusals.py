"""What the theorem of reduction does not cover is refused, with the condition that fails."""

import numpy as np
import pytest
import torch

from lowdyn import DeepLinearNetwork, Descent, gradient_descent, reduce_network
from lowdyn.dynamics import invariant_frames
from lowdyn.networks import normal
from lowdyn.problems import Factorization, Regression, low_rank_target
from tests.cases import gaussian, seeded
from tests.reducible import start

# --- frames


def square(*, width=6, rank=1, start=None, **options):
    target = low_rank_target(width, width, rank=rank, generator=seeded())
    network = DeepLinearNetwork(
        (width,) * 3, 0.5, generator=seeded(1), **({"start": start} if start else {}), **options
    )
    return network, Factorization(target)


def with_inputs(inputs):
    network, problem = square()
    return network, Regression(inputs, problem.targets @ inputs)


def of_other_sizes(*sizes, rank=1):
    network = DeepLinearNetwork(sizes, generator=seeded(1))
    return network, Factorization(low_rank_target(sizes[-1], sizes[0], rank=rank, generator=seeded()))


def almost_orthogonal():
    network, problem = square()
    network.weights[1][0, 0] += 1e-6
    return network, problem


@pytest.mark.usefixtures("nothing_global_changes")
@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: square(start=lambda m, n, **_: gaussian(m, n)), r"weight 1 is not .* orthogonal .* start=orthogonal"),
        (almost_orthogonal, r"weight 2 is not a multiple of an orthogonal matrix \(.* by \d\.\de-06\)"),
        (lambda: with_inputs(gaussian(6, 9)), r"inputs are not white .* lowdyn.linalg.whiten"),
        (
            lambda: square(rank=3),
            r"no room for an inert block: .* all 6 dimensions \(target of rank 3, 6 outputs\); widen the network",
        ),
        (lambda: of_other_sizes(6, 3, rank=3), "no room for an inert block"),
        (lambda: of_other_sizes(6, 5, 6), r"square weights up to the last; .* \(6, 5, 6\)"),
        (lambda: of_other_sizes(6, 7, 6), "square weights up to the last"),
        (lambda: square(runs=2), r"one network at a time; take network.run\(i\)"),
        (lambda: (square()[0], square(width=5)[1]), "the network maps 6 -> 6, the problem 5 -> 5"),
        pytest.param(
            lambda: (square()[0], Factorization(torch.zeros(6, 6))),
            "rank 0|zero",
        ),
        pytest.param(
            lambda: (DeepLinearNetwork.from_weights([np.zeros((6, 6)), np.eye(6)]), square()[1]),
            "weight 1 is not a multiple of an orthogonal matrix",
        ),
        pytest.param(
            lambda: (square()[0], Factorization(torch.stack([square()[1].targets] * 2))),
            "runs|one problem",
        ),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused_with_the_condition(case, message):
    network, problem = case()
    with pytest.raises(ValueError, match=message):
        invariant_frames(network, problem)


# --- the reduced network


def test_float32():
    generator = seeded()
    problem = Factorization(low_rank_target(20, 20, rank=2, generator=generator)).to(torch.float32)
    network = DeepLinearNetwork((20, 20, 20), 0.3, generator=generator)
    single = DeepLinearNetwork.from_weights(weight.float() for weight in network.weights)
    # float32 weights are orthogonal only to 1e-7, above what the theorem's check lets pass.
    with pytest.raises(ValueError, match="not a multiple of an orthogonal"):
        reduce_network(single, problem)


REFUSALS = {
    "not a multiple of an orthogonal": lambda g: (
        DeepLinearNetwork((20, 20, 20), start=normal, generator=g),
        Factorization(low_rank_target(20, 20, rank=2, generator=g)),
    ),
    "not white.*whiten": lambda g: (
        DeepLinearNetwork((20, 20, 20), generator=g),
        Regression(torch.randn(20, 50, generator=g), torch.randn(20, 50, generator=g)),
    ),
    "not orthonormal": lambda g: (
        DeepLinearNetwork((20, 20, 3), generator=g),
        Regression(torch.randn(20, 9, generator=g), torch.randn(3, 9, generator=g)),
    ),
    "no room": lambda g: (
        DeepLinearNetwork((20, 20, 20), generator=g),
        Factorization(low_rank_target(20, 20, rank=10, generator=g)),
    ),
    "width of the input": lambda g: (
        DeepLinearNetwork((20, 30, 20), generator=g),
        Factorization(low_rank_target(20, 20, rank=2, generator=g)),
    ),
    "problem": lambda g: (
        DeepLinearNetwork((20, 20, 20), generator=g),
        Factorization(low_rank_target(19, 20, rank=2, generator=g)),
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals_name_the_condition(message):
    with pytest.raises(ValueError, match=message):
        reduce_network(*REFUSALS[message](seeded()))


def test_refuses_other_problems_and_networks():
    network, problem = start("square", 2, 2, 0.3)
    small = reduce_network(network, problem)
    with pytest.raises(ValueError, match="another problem"):
        gradient_descent(small, Factorization(torch.zeros(24, 24)), Descent(lr=0.1), 1)
    with pytest.raises(TypeError, match="such as Adam"):
        gradient_descent(small, problem, torch.optim.Adam([torch.zeros(1, requires_grad=True)]), 1)
    with pytest.raises(TypeError, match="DeepLinearNetwork"):
        reduce_network(torch.nn.Linear(3, 3), problem)
    with pytest.raises(TypeError, match="masked"):
        reduce_network(network, object())
    with pytest.raises(ValueError, match="layer must be"):
        small.apply(3, torch.zeros(24, 1, dtype=torch.float64))
