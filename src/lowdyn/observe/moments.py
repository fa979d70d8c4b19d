"""Class means and within-class scatter of a stream of features, centred, in float64, mergeable."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

ROWS = 256  # taken at once: as float64 they stay in a core's cache up to a width of about a thousand


class ClassMoments:
    """Count, mean and scatter Σ‖z − z̄_k‖² of each class, over any number of batches; O(classes · width) memory.

    Raw sums of squares would cancel (1.5e-8 relative at D = 1e-8). Each class is therefore shifted by the mean
    of the first samples that showed it, which are samples of its own, so that neither a common offset nor tight
    classes cost digits; what batches, workers or ranks have seen merges by Chan, Golub and LeVeque's formula
    (1983). A batch costs its own size, however many classes there are.

    >>> moments = ClassMoments(num_classes=2, width=1)
    >>> moments.update(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> moments.means[:, 0].tolist(), moments.scatter.tolist()
    ([1.0, 5.0], [2.0, 0.0])
    """

    def __init__(self, num_classes: int, width: int, device: torch.device | str | None = None) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.shift = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        self.total = torch.zeros_like(self.shift)  # Σ (z − shift)
        self.squares = torch.zeros_like(self.counts)  # Σ ‖z − shift‖²

    @property
    def offset(self) -> Tensor:
        """Class means minus the shifts (classes, width)."""
        return self.total / self.counts.clamp(min=1.0)[:, None]

    @property
    def means(self) -> Tensor:
        """Class means (classes, width)."""
        return self.shift + self.offset

    @property
    def scatter(self) -> Tensor:
        """Σ‖z − z̄_k‖² of each class (classes,)."""
        return (self.squares - (self.total * self.offset).sum(dim=1)).clamp(min=0.0)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch: ``features`` (samples, width) of any dtype, ``labels`` (samples,) in 0 … classes − 1."""
        for part, classes in row_blocks(features, labels):
            ones = torch.ones(len(classes), dtype=torch.float64, device=classes.device)
            if bool((self.counts[classes] == 0).any()):
                self._shift_unseen(part, classes)
            self.counts.index_add_(0, classes, ones)
            centred = self.shift[classes]
            torch.sub(part, centred, out=centred)
            self.total.index_add_(0, classes, centred)
            self.squares.index_add_(0, classes, centred.square_().sum(dim=1))

    def _shift_unseen(self, features: Tensor, labels: Tensor) -> None:
        new = self.counts[labels] == 0
        seen, place, count = torch.unique(labels[new], return_inverse=True, return_counts=True)
        sums = features.new_zeros((len(seen), features.shape[1]), dtype=torch.float64)
        sums.index_add_(0, place, features[new].to(torch.float64))
        self.shift[seen] = sums / count[:, None]

    def merge(self, other: ClassMoments) -> None:
        """Take in the moments of other samples, of the same classes and width."""
        if other.shift.shape != self.shift.shape:
            raise ValueError(f"cannot merge moments of {tuple(other.shift.shape)} into {tuple(self.shift.shape)}")
        self.shift = torch.where((self.counts == 0)[:, None], other.shift, self.shift)
        count = self.counts + other.counts
        apart = other.offset + (other.shift - self.shift) - self.offset
        share = other.counts / count.clamp(min=1.0)
        offset = self.offset + share[:, None] * apart
        scatter = self.scatter + other.scatter + self.counts * share * apart.square().sum(dim=1)
        self.counts, self.total = count, count[:, None] * offset
        self.squares = scatter + count * offset.square().sum(dim=1)


class TotalMoments:
    """Count, mean and scatter matrix Σ (z − z̄)(z − z̄)ᵀ of all samples, shifted and mergeable; O(width²) memory.

    >>> moments = TotalMoments(width=2)
    >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> moments.mean.tolist(), moments.scatter.tolist()
    ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.shift = torch.zeros(width, dtype=torch.float64, device=device)
        self.total = torch.zeros_like(self.shift)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    @property
    def offset(self) -> Tensor:
        """Mean minus shift (width,)."""
        return self.total / self.count.clamp(min=1.0)

    @property
    def mean(self) -> Tensor:
        """Mean of all samples (width,)."""
        return self.shift + self.offset

    @property
    def scatter(self) -> Tensor:
        """Σ (z − z̄)(z − z̄)ᵀ (width, width)."""
        return self.products - torch.outer(self.total, self.offset)

    @property
    def gram(self) -> Tensor:
        """Σ z zᵀ (width, width), whose eigenvalues are the squared singular values of the feature matrix."""
        return self.scatter + self.count * torch.outer(self.mean, self.mean)

    def update(self, features: Tensor) -> None:
        """Take in ``features`` (samples, width) of any dtype."""
        if len(features) and not bool(self.count):
            self.shift = features[:ROWS].detach().to(torch.float64).mean(dim=0)
        for part in torch.split(features.detach(), 16 * ROWS):  # longer blocks than above: matrix products like them
            centred = part.to(torch.float64) - self.shift
            self.count += len(part)
            self.total += centred.sum(dim=0)
            self.products.addmm_(centred.T, centred)

    def merge(self, other: TotalMoments) -> None:
        """Take in the moments of other samples of the same width."""
        if other.shift.shape != self.shift.shape:
            raise ValueError(f"cannot merge moments of width {len(other.shift)} into width {len(self.shift)}")
        if not bool(self.count):
            self.shift = other.shift
        count = self.count + other.count
        apart = other.offset + (other.shift - self.shift) - self.offset
        share = other.count / count.clamp(min=1.0)
        offset = self.offset + share * apart
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(apart, apart)
        self.count, self.total = count, count * offset
        self.products = scatter + count * torch.outer(offset, offset)


def row_blocks(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a batch in blocks of rows that a cache can hold; whole where there is an accelerator to fill."""
    rows = ROWS if features.device.type == "cpu" else max(1, len(features))
    return zip(torch.split(features.detach(), rows), torch.split(labels, rows), strict=True)


def merge_ranks(moments: ClassMoments | TotalMoments) -> None:
    """Merge ``moments`` over the ranks of torch.distributed's default group, to the same bytes on every rank.

    Every rank calls it, with moments of the same shape. They merge in the order of the ranks, one in flight at a
    time, so that memory does not grow with the number of ranks.
    """
    from torch import distributed

    mine, rank = dict(vars(moments)), distributed.get_rank()
    for name, tensor in mine.items():
        setattr(moments, name, torch.zeros_like(tensor))
    for source in range(distributed.get_world_size()):
        other = copy(moments)
        for name, tensor in mine.items():
            sent = tensor.clone() if source == rank else torch.empty_like(tensor)
            distributed.broadcast(sent, src=source)
            setattr(other, name, sent)
        moments.merge(other)  # type: ignore[arg-type]
