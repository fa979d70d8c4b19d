"""Seeded draws and small problems that several tests share, and cases whose answer is known exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdyn import DeepLinearNetwork, Descent
from lowdyn.problems import Factorization, LeastSquares, Regression


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a torch module, always with the same weights and without a trace in the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@dataclass(frozen=True)
class Chain:
    """Sizes d_0 … d_L of a network and N samples, or None for factorization."""

    sizes: tuple[int, ...]
    samples: int | None

    def weights(self, *, seed: int = 0, runs: int | None = None) -> list[Tensor]:
        batch = () if runs is None else (runs,)
        shapes = zip(self.sizes[1:], self.sizes[:-1], strict=True)
        return [0.4 * gaussian(*batch, *shape, seed=seed + layer) for layer, shape in enumerate(shapes)]

    def data(self, *, seed: int = 100) -> tuple[Tensor, Tensor]:
        """Return X and Y; X is the identity for factorization."""
        if self.samples is None:
            return torch.eye(self.sizes[0], dtype=torch.float64), gaussian(self.sizes[-1], self.sizes[0], seed=seed)
        return gaussian(self.sizes[0], self.samples, seed=seed), gaussian(self.sizes[-1], self.samples, seed=seed + 1)

    def problem(self, reduction: str = "mean", *, seed: int = 100) -> LeastSquares:
        inputs, targets = self.data(seed=seed)
        return Factorization(targets, reduction) if self.samples is None else Regression(inputs, targets, reduction)


# Every way through the code: more, as many and fewer samples than inputs, the transposed chain (fewer outputs than
# columns), the chain without inputs, one layer to six, sizes of one.
CHAINS = {
    "one layer": Chain((3, 4), 6),
    "one layer, thin": Chain((4, 1), 6),
    "one layer, factorization": Chain((3, 3), None),
    "N > d": Chain((3, 5, 4), 9),
    "N > d, thin": Chain((5, 4, 2), 9),
    "N = d": Chain((4, 5, 3), 4),
    "N < d": Chain((6, 5, 4), 3),
    "N < d, thin": Chain((6, 5, 2), 3),
    "N = 1": Chain((3, 3, 3), 1),
    "factorization": Chain((4, 4, 4, 4), None),
    "factorization, thin": Chain((6, 5, 2), None),
    "factorization, tall": Chain((2, 3, 5), None),
    "bottleneck": Chain((4, 1, 4), None),
    "scalars": Chain((1, 1, 1), None),
    "six layers": Chain((3, 4, 3, 2, 3, 4, 2), 7),
}


# Twenty steps, a few dozen products each: two orders of summation differ by some hundred units in the last place.
ROUNDING = {"rtol": 1e-12, "atol": 1e-13}
STEEP = Factorization(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), "sum")


def fading(step: int) -> float:
    return 0.1 / (1 + step)


# factor_rates are 1, 2, 3, … so that a reversed chain shows.
RULES: dict[str, Callable[[int], Descent]] = {
    "plain": lambda depth: Descent(lr=0.05),
    "schedule": lambda depth: Descent(lr=fading),
    "decay": lambda depth: Descent(lr=0.05, weight_decay=0.3),
    "momentum": lambda depth: Descent(lr=0.03, momentum=0.8),
    "momentum and decay": lambda depth: Descent(lr=0.03, momentum=0.8, weight_decay=0.3),
    "nesterov": lambda depth: Descent(lr=0.03, momentum=0.8, nesterov=True),
    "nesterov and decay": lambda depth: Descent(lr=0.03, momentum=0.8, nesterov=True, weight_decay=0.3),
    "decoupled": lambda depth: Descent(lr=fading, weight_decay=0.3, decoupled=True),
    "decoupled with momentum": lambda depth: Descent(lr=0.03, momentum=0.8, weight_decay=0.3, decoupled=True),
    "factor rates": lambda depth: Descent(lr=0.02, factor_rates=tuple(range(1, depth + 1))),
    "frozen first factor": lambda depth: Descent(lr=0.05, factor_rates=(0.0, *[1.0] * (depth - 1))),
    "all at once": lambda depth: Descent(
        lr=fading, momentum=0.5, nesterov=True, weight_decay=0.3, factor_rates=tuple(range(1, depth + 1))
    ),
}


def balanced_solution(target: Tensor, depth: int) -> DeepLinearNetwork:
    """Return the network with W_{L:1} = target whose factors share the singular values σ^(1/L)."""
    left, values, right_t = torch.linalg.svd(target)
    share = torch.diag(values ** (1 / depth))
    first, last = share @ right_t, left @ share
    weights = [left @ torch.diag(values) @ right_t] if depth == 1 else [first, *[share] * (depth - 2), last]
    return DeepLinearNetwork.from_weights(weights)


def tilted_plane(angle: float) -> tuple[Tensor, Tensor]:
    """Return bases (4, 2) of two planes whose principal angles are ``angle`` and 0."""
    e = torch.eye(4, dtype=torch.float64)
    t = torch.tensor(angle, dtype=torch.float64)
    return e[:, :2], torch.stack([e[0], t.cos() * e[1] + t.sin() * e[2]], dim=1)
