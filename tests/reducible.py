"""Networks and problems that reduce exactly: one start for each case of theory §2."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from lowdyn import DeepLinearNetwork
from lowdyn.linalg import random_orthogonal, whiten
from lowdyn.problems import Factorization, LeastSquares, Regression, low_rank_target
from tests.cases import seeded


def white(rows: int, samples: int, scale: float, generator: torch.Generator) -> torch.Tensor:
    return whiten(torch.randn(rows, samples, generator=generator, dtype=torch.float64), scale=scale)[0]


def case(kind: str, width: int, rank: int, generator: torch.Generator) -> tuple[int, LeastSquares]:
    """Return the outputs' dimension and a problem of ``width`` inputs for each case of theory §2."""
    target = lambda rows: low_rank_target(rows, width, rank=rank, generator=generator)  # noqa: E731
    if kind == "square":
        return width, Factorization(target(width))
    if kind == "outputs of full rank":
        return rank, Factorization(target(rank))
    if kind == "between":
        return 9, Factorization(target(9))
    if kind == "tall":
        return width + 7, Factorization(target(width + 7))
    if kind == "white":
        inputs = white(width, 60, 2.0, generator)
        return width, Regression(inputs, target(width) @ inputs)
    if kind == "white, classes":
        labels = one_hot(torch.arange(60) % 3, 3).T.to(torch.float64)
        return 3, Regression(white(width, 60, 0.5, generator), labels)
    samples = random_orthogonal(width, 9, generator=generator)
    if kind == "few samples, classes":
        return 3, Regression(samples, one_hot(torch.arange(9) // 3, 3).T.to(torch.float64))
    rows = {"few samples, square": width, "few samples, tall": width + 6, "few samples, between": 7}[kind]
    return rows, Regression(samples, target(rows) @ samples)


KINDS = (
    "square",
    "outputs of full rank",
    "between",
    "tall",
    "white",
    "white, classes",
    "few samples, classes",
    "few samples, square",
    "few samples, tall",
    "few samples, between",
)


def start(
    kind: str, depth: int, rank: int, scale: float, *, width: int = 24, seed: int = 0
) -> tuple[DeepLinearNetwork, LeastSquares]:
    generator = seeded(seed)
    outputs, problem = case(kind, width, rank, generator)
    network = DeepLinearNetwork((*[width] * depth, outputs), scale, generator=generator)
    for layer, weight in enumerate(network.weights):  # every layer its own scale
        weight.mul_(1 + 0.1 * layer)
    return network, problem
