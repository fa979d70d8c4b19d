"""Class means and within-class scatter of a stream of features, centred, in float64, mergeable."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassMoments:
    """Count, mean and scatter Σ‖z − z̄_k‖² of each class, over any number of batches; O(classes · width) memory.

    Raw sums of squares would cancel (1.5e-8 relative at D = 1e-8). Each class is therefore shifted by the mean
    of the first batch that showed it, and batches merge by Chan, Golub and LeVeque's formula (1983), so that
    neither a common offset nor tight classes cost digits.

    >>> moments = ClassMoments(num_classes=2, width=1)
    >>> moments.update(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> moments.means[:, 0].tolist(), moments.scatter.tolist()
    ([1.0, 5.0], [2.0, 0.0])
    """

    def __init__(self, num_classes: int, width: int, device: torch.device | str | None = None) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.shift = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        self.offset = torch.zeros_like(self.shift)  # mean minus shift
        self.scatter = torch.zeros_like(self.counts)

    @property
    def means(self) -> Tensor:
        """Class means (classes, width)."""
        return self.shift + self.offset

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch: ``features`` (samples, width) of any dtype, ``labels`` (samples,) in 0 … classes − 1."""
        features = features.to(torch.float64)
        member = torch.zeros(len(self.counts), len(labels), dtype=torch.float64, device=features.device)
        member[labels, torch.arange(len(labels), device=labels.device)] = 1.0
        batch = ClassMoments(len(self.counts), features.shape[1], features.device)
        batch.counts = member.sum(dim=1)
        share = member / batch.counts.clamp(min=1.0)[:, None]
        unseen = (self.counts == 0) & (batch.counts > 0)
        if bool(unseen.any()):
            self.shift[unseen] = (share @ features)[unseen]
        batch.shift = self.shift
        centred = features - self.shift[labels]
        batch.offset = share @ centred
        batch.scatter = member @ (centred - batch.offset[labels]).square().sum(dim=1)
        self.merge(batch)

    def merge(self, other: ClassMoments) -> None:
        """Take in the moments of other samples, of the same classes and width."""
        if other.shift.shape != self.shift.shape:
            raise ValueError(f"cannot merge moments of {tuple(other.shift.shape)} into {tuple(self.shift.shape)}")
        unseen = (self.counts == 0)[:, None]
        self.shift = torch.where(unseen, other.shift, self.shift)
        apart = other.offset + (other.shift - self.shift) - self.offset
        total = self.counts + other.counts
        share = other.counts / total.clamp(min=1.0)
        self.offset = self.offset + share[:, None] * apart
        self.scatter = self.scatter + other.scatter + self.counts * share * apart.square().sum(dim=1)
        self.counts = total
