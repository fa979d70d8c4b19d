"""What a trained network's features are worth: their rank as published, and what a linear classifier makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdyn.linalg import rank_of_energy
from lowdyn.observe import ClassMoments, class_measures
from lowdyn.observe.linear_probe import LinearProbe
from lowdyn.observe.moments import TotalMoments


def nuclear_rank(features: Tensor, share: float = 0.95) -> int:
    """Return how many singular values of ``features`` (samples, width) make up ``share`` of their sum.

    This is the "numerical rank" that Wang et al. 2023 (arXiv 2311.02960) draw, with 95 %.

    >>> nuclear_rank(torch.diag(torch.tensor([3.0, 2.0, 0.1])))
    2
    """
    wide = features.to(torch.float64)
    squares = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0.0).flip(0)
    return rank_of_energy(squares**0.25, share)  # the squares of these are the singular values


def within_between_ratio(features: Tensor, labels: Tensor, num_classes: int) -> float:
    """Return D = tr Σ_W / tr Σ_B of ``features`` (samples, width)."""
    return class_measures(_moments(features, labels, num_classes))["within_between_ratio"]


def probe_accuracy(
    features: Tensor, labels: Tensor, num_classes: int, *, scored: tuple[Tensor, Tensor] | None = None
) -> float:
    """Return the share that a linear classifier fitted on ``features`` gets right, of them or of ``scored`` ones."""
    total = TotalMoments(features.shape[1])
    total.update(features)
    probe = LinearProbe(_moments(features, labels, num_classes), total)
    inputs, right = (features, labels) if scored is None else scored
    return float((probe.predict(inputs) == right).double().mean())


def _moments(features: Tensor, labels: Tensor, num_classes: int) -> ClassMoments:
    moments = ClassMoments(num_classes, features.shape[1])
    moments.update(features, labels)
    return moments
