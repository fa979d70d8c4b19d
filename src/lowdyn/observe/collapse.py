"""Neural collapse, NC1 to NC4, without a covariance matrix of the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowdyn.observe.features import plain_modules
from lowdyn.observe.moments import ClassMoments, row_blocks

DRIFT = 1e-3  # of class means between two passes, in units of Σ_B; rounding in float32 stays far below


def class_weights(moments: ClassMoments, *, balanced: bool) -> Tensor:
    """Return what each class weighs in Σ_W, Σ_B and the global mean (classes,): the same, or its frequency."""
    counts = moments.counts
    return torch.full_like(counts, 1 / len(counts)) if balanced else counts / counts.sum()


def centred_means(moments: ClassMoments, weights: Tensor) -> Tensor:
    """Return μ_k = z̄_k − Σ_j w_j z̄_j (classes, width)."""
    # Around the first mean, so that a common offset does not enter the global mean's rounding.
    relative = (moments.shift - moments.shift[0]) + (moments.offset - moments.offset[0])
    return relative - weights @ relative


class CollapsePass:
    """The second pass over the samples whose ``moments`` are known: NC1, and the nearest class means.

    Σ_B = Σ_k w_k μ_k μ_kᵀ has rank K − 1 at most. With A = (√w_1 μ_1 …) = U S Vᵀ, Σ_B^† = U S⁻² Uᵀ, so that
    tr(Σ_W Σ_B^†) is the mean of ‖S⁻¹Uᵀ(z − z̄_k)‖²: features are projected on U, K − 1 numbers a sample, and
    no width × width matrix is made. Memory O(classes · width).
    """

    def __init__(self, moments: ClassMoments, *, balanced: bool) -> None:
        self.moments, self.weights = moments, class_weights(moments, balanced=balanced)
        self.mu = centred_means(moments, self.weights)
        self.global_mean = moments.means[0] - self.mu[0]
        _, values, basis_t = torch.linalg.svd(self.weights.sqrt()[:, None] * self.mu, full_matrices=False)
        kept = values > values[0] * max(self.mu.shape) * torch.finfo(values.dtype).eps
        self.basis, self.values = basis_t[kept].mT, values[kept]
        self.centres = self.mu @ self.basis
        self.projected = ClassMoments(len(self.mu), len(self.values), self.mu.device)

    def nearest(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take in a batch; return the class whose mean is nearest, for every sample."""
        found = []
        for part, classes in row_blocks(features, labels):
            inside = (part.to(torch.float64) - self.global_mean) @ self.basis
            found.append((inside @ self.centres.mT - self.centres.square().sum(dim=1) / 2).argmax(dim=1))
            self.projected.update(inside / self.values, classes)
        return torch.cat(found)

    def nc1(self, name: str) -> float:
        """Return tr(Σ_W Σ_B^†)/K, NaN where all class means coincide; ValueError if other samples were seen."""
        moved = (self.projected.means - self.centres / self.values).abs().max() if len(self.values) else 0.0
        first, second = self.moments.counts, self.projected.counts
        if not torch.equal(first, second) or float(moved) > DRIFT:
            raise ValueError(
                f"neural collapse takes two passes, and the second gave other samples: {int(second.sum())} after "
                f"{int(first.sum())}, class means of {name!r} moved by {float(moved):.1e}; pass a list or a DataLoader "
                "that gives the same samples again, without random augmentation"
            )
        if not len(self.values):
            return float("nan")
        return float((self.weights * self.projected.scatter / self.projected.counts).sum() / len(self.mu))

    def nc2(self) -> float:
        """Return ‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F, G the Gram matrix of the centred class means."""
        return float((_unit(self.mu @ self.mu.mT) - simplex(len(self.mu)).to(self.mu)).norm())

    def nc3(self, weight: Tensor) -> float:
        """Return ‖W/‖W‖_F − M/‖M‖_F‖_F, M the centred class means as rows, ``weight`` (classes, width)."""
        return float((_unit(weight.to(self.mu)) - _unit(self.mu)).norm())


def simplex(classes: int) -> Tensor:
    """Return the Gram matrix of a simplex equiangular tight frame, of norm 1: (I − 11ᵀ/K)/√(K−1).

    >>> simplex(2).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    identity = torch.eye(classes, dtype=torch.float64)
    return (identity - 1 / classes) / (classes - 1) ** 0.5


def find_classifier(model: nn.Module, num_classes: int) -> str | None:
    """Return the name of the last module with a weight (num_classes, width), or None."""
    found = None
    for name, module in plain_modules(model).items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[0] == num_classes:
            found = name
    return found


def classifier_weight(model: nn.Module, name: str) -> Tensor:
    """Return the weight of a module, whole also where FSDP keeps shards of it."""
    weight = plain_modules(model)[name].weight
    assert isinstance(weight, Tensor)
    whole = getattr(weight, "full_tensor", None)
    return (weight if whole is None else whole()).detach()


def _unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm()
