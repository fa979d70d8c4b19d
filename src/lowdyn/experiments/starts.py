"""Starts of the linear experiments: orthogonal as the theorem asks, and the ones that must make claims fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lowdyn.dynamics import Frames, invariant_frames
from lowdyn.networks import DeepLinearNetwork, normal, orthogonal, uniform
from lowdyn.networks.linear import Start
from lowdyn.problems import LeastSquares

STARTS: Mapping[str, Start] = {"orthogonal": orthogonal, "normal": normal, "uniform": uniform}


def start_with_frames(
    sizes: Sequence[int],
    init_scale: float,
    problem: LeastSquares,
    generator: torch.Generator,
    *,
    start: str = "orthogonal",
    disturbance: float = 0.0,
) -> tuple[DeepLinearNetwork, Frames]:
    """Return a network at its start and the frames that theory predicts for it.

    For a start that is not orthogonal the frames are those of the nearest orthogonal weights (the polar
    factors), and ``disturbance`` times a Gaussian matrix is added to W_1 behind their back: negative controls.
    """
    network = DeepLinearNetwork(sizes, init_scale, start=STARTS[start], generator=generator)
    polar = DeepLinearNetwork.from_weights(_nearest_orthogonal(weight) for weight in network.weights)
    frames = invariant_frames(network if start == "orthogonal" else polar, problem)
    if disturbance:
        first = network.weights[0]
        first.add_(disturbance * torch.randn(first.shape, generator=generator, dtype=first.dtype))
    return network, frames


def _nearest_orthogonal(weight: torch.Tensor) -> torch.Tensor:
    left, values, right_t = torch.linalg.svd(weight, full_matrices=False)
    return values.square().mean().sqrt() * (left @ right_t)
