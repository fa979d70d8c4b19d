"""The subspace in which a weight matrix moved, and what of its moves lies outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdyn.arguments import checked_count, checked_matrix
from lowdyn.linalg import rank_of_energy

TOLERANCE = 1e-5  # largest departure from orthonormality that rounding explains, also in float32


def checked_basis(name: str, basis: Any) -> Tensor:
    """Return an orthonormal basis of the span of ``basis`` (…, d, k), float64; ValueError if it is not one itself.

    It is one up to its rounding, as float32 leaves it, which QR takes out: angles and projections take it as exact.
    There may be no column.

    >>> basis = torch.full((3, 1), 3**-0.5)
    >>> float(basis.double().norm()) == 1.0, round(float(checked_basis("left", basis).norm()), 15)
    (False, 1.0)
    """
    basis = torch.as_tensor(basis).detach().to(torch.float64)
    if basis.ndim < 2:
        raise ValueError(f"{name} must be a matrix of basis vectors (d, k), got shape {tuple(basis.shape)}")
    departure = (basis.mT @ basis - torch.eye(basis.shape[-1]).to(basis)).abs()
    if not bool((departure < TOLERANCE).all()):
        raise ValueError(
            f"columns of {name} are not orthonormal: their products are off by {float(departure.max()):.2g}, rounding "
            f"explains {TOLERANCE:g}; take lowdyn.linalg.orthonormal_basis first"
        )
    return torch.linalg.qr(basis)[0]


@dataclass(frozen=True, eq=False)
class ActiveSubspace:
    """The move M = W(T) − s W(0) of a weight (out, in) by its singular value decomposition, in float64.

    ``left`` (out, m), ``values`` (m,) descending and ``right`` (in, m) are its singular vectors and values, m =
    min(out, in); ``dimension`` is the number of directions asked for, or needed to hold the share of the energy
    asked for; ``scale`` is s. "Energy" is ‖·‖²_F.

    >>> moved = active_subspace([torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])])
    >>> moved.values.tolist(), moved.dimension, [tuple(basis.shape) for basis in moved.bases()]
    ([5.0, 0.0], 1, [(2, 1), (3, 1)])
    """

    left: Tensor
    values: Tensor
    right: Tensor
    dimension: int
    scale: float

    def energy(self, top: int) -> float:
        """Return the share Σ_{i ≤ top} σ_i² / Σ σ_i² of the energy in the ``top`` directions; 1 if nothing moved.

        >>> active_subspace([torch.zeros(2, 2), torch.diag(torch.tensor([2.0, 1.0]))]).energy(1)
        0.8
        """
        return 1.0 - self._tail(top) ** 2

    def outside(self, top: int) -> float:
        """Return the share of the *norm* ‖M‖_F outside the ``top`` directions, √(1 − energy); 0 if nothing moved.

        Summed from the small values up, so that a share of 1e-12 is one.

        >>> active_subspace([torch.zeros(2, 2), torch.diag(torch.tensor([4.0, 3.0]))]).outside(1)
        0.6
        """
        return self._tail(top)

    def bases(self, top: int | None = None) -> tuple[Tensor, Tensor]:
        """Return orthonormal bases (left (out, k), right (in, k)) of the ``top``, else ``dimension``, directions.

        The order is that of the ``reference`` of :class:`~lowdyn.Spectra`.
        """
        top = self.dimension if top is None else checked_count("top", top)
        return self.left[:, :top], self.right[:, :top]

    def _tail(self, top: int) -> float:
        tail = self.values[checked_count("top", top) :].norm()
        return float(tail / self.values.norm()) if self.values[0] > 0 else 0.0


def active_subspace(
    weights: Iterable[Any], *, share: float = 0.99, dimension: int | None = None, rescaled: bool = False
) -> ActiveSubspace:
    """Return the directions in which a weight matrix moved from the first of ``weights`` to the last.

    ``weights`` are W(0), …, W(T), each (out, in): a list, an array or tensor (times, out, in), or any iterable, a
    generator over checkpoints included, which is gone through once; a few matrices are held. ``dimension`` of
    the answer is the smallest k whose k leading singular directions of W(T) − W(0) hold at least ``share`` of its
    energy ‖·‖²_F (0 where nothing moved), unless it is given.

    The theorem of Yaras et al. 2023 (arXiv 2306.01154) has the rest of the directions, from an orthogonal start
    εQ, not at rest but shrinking together, W_l(t) = B_l W̃_l B_{l−1}ᵀ + ρ(t)(Q_l − B_l B_{l−1}ᵀ) (theory §2), and
    weight decay shrinks all of any weight: moves of full rank that turn nothing. ``rescaled`` takes them out. It
    measures W(T) − s W(0), s the ratio of the median singular values now and at the start: exactly ρ(T)/ε while
    fewer than half of the values lie above the inert ones and fewer than half below. What is left has rank ≤ 2r.

    :func:`outside_share` tells whether earlier moves stayed in the same subspace. ValueError for fewer than two
    matrices, shapes that differ, a start of median singular value 0 that cannot be rescaled.

    >>> start = torch.eye(4, dtype=torch.float64)
    >>> moved = active_subspace([start, 0.5 * start + torch.outer(start[0], start[1])], rescaled=True)
    >>> moved.dimension, moved.scale, round(moved.outside(1), 12)
    (1, 0.5, 0.0)
    """
    dimension = None if dimension is None else checked_count("dimension", dimension)
    matrices = _matrices(weights)
    start = last = next(matrices)
    for matrix in matrices:
        last = matrix
    scale = _scale(last, _median(start)) if rescaled else 1.0
    left, values, right_t = torch.linalg.svd(last - scale * start, full_matrices=False)
    if dimension is None:
        dimension = rank_of_energy(values, share)
    return ActiveSubspace(left, values, right_t.mT, min(dimension, len(values)), scale)


def outside_share(weights: Iterable[Any], left: Tensor, right: Tensor, *, rescaled: bool = False) -> Tensor:
    """Return, for every time, the share of the move's norm outside the subspaces ``left`` (out, k), ``right`` (in, m).

    With orthonormal bases U and V, of :meth:`ActiveSubspace.bases` or of theory
    (:func:`lowdyn.dynamics.invariant_frames`), and M(t) = W(t) − W(0), or W(t) − s(t) W(0) with ``rescaled`` as in
    :func:`active_subspace`, it is ‖M − UUᵀMVVᵀ‖_F/‖M‖_F, (times,), float64; 0 where nothing moved, as at the first
    time. Against the subspace of the last move, the largest says whether learning stayed in one subspace all along:
    small early moves count as much as the last. ``weights`` are gone through once; a few matrices are held.

    ValueError for fewer than two matrices, shapes that differ or do not fit the bases, bases not orthonormal.

    >>> e = torch.eye(3, dtype=torch.float64)
    >>> weights = [0 * e, torch.outer(e[0], 3 * e[0] + 4 * e[1]), torch.outer(e[0], e[0])]
    >>> moved = active_subspace(weights)
    >>> moved.dimension, outside_share(weights, *moved.bases()).tolist()
    (1, [0.0, 0.8, 0.0])
    """
    matrices = _matrices(weights)
    start = next(matrices)
    left, right = (checked_basis(name, basis).to(start) for name, basis in (("left", left), ("right", right)))
    if left.ndim != 2 or right.ndim != 2 or (left.shape[0], right.shape[0]) != tuple(start.shape):
        raise ValueError(
            f"left {tuple(left.shape)} and right {tuple(right.shape)} must be (out, k) and (in, m) for weights "
            f"{tuple(start.shape)}"
        )
    median = _median(start) if rescaled else 0.0
    shares = [start.new_zeros(())]
    for matrix in matrices:
        move = matrix - (_scale(matrix, median) if rescaled else 1.0) * start
        outside = move - left @ (left.mT @ move @ right) @ right.mT
        norm = move.norm()
        shares.append(torch.where(norm > 0, outside.norm() / norm, norm))
    return torch.stack(shares)


def _matrices(weights: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the matrices in float64 on the first one's device; ValueError unless two or more of one shape."""
    first, count = None, 0
    for matrix in weights:
        checked = checked_matrix("every weight", matrix)
        if checked.ndim != 2 or (first is not None and checked.shape != first.shape):
            wanted = "(out, in)" if first is None else f"{tuple(first.shape)} as the first"
            raise ValueError(
                f"weights must be matrices of one shape, {wanted}; weight {count} is {tuple(checked.shape)}"
            )
        if first is None:
            first = checked.to(torch.float64)
        count += 1
        # A copy: a generator may yield a live parameter, which training then changes.
        yield checked.to(first, copy=True)
    if count < 2:
        raise ValueError(f"a move needs the start and at least one later matrix, got {count} in all")


def _median(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix).median())


def _scale(matrix: Tensor, median: float) -> float:
    if median == 0.0:
        raise ValueError("the start has median singular value 0 and cannot be rescaled; pass rescaled=False")
    return _median(matrix) / median
