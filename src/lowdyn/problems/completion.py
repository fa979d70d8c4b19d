"""Matrix completion: W_L … W_1 = target on the entries that were observed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from lowdyn.arguments import checked_choice, checked_matrix
from lowdyn.linalg import leading_singular_vectors, spectral_norm
from lowdyn.networks import narrowest_split, product_of
from lowdyn.problems.entries import Entries, with_values
from lowdyn.problems.problem import Problem


class Completion(Problem):
    """½ mean (or sum) of the squares of W_{L:1} − target over the observed entries Ω.

    ``target`` is (m, n) and ``mask`` a bool matrix of that shape, True where observed; either may have a leading
    dimension of runs, with a mask and a mean of its own for each. What the target holds elsewhere, NaN included, is
    not looked at. Rows and columns without an entry are allowed: no gradient reaches their factors. The mean is over
    observed entries, as in Kwon et al. 2024; that of Yaras et al. 2023 is over all of them, a rate 1/p of this one's.

    On a CPU a product through a narrow dimension touches observed entries only, see
    :func:`~lowdyn.gradient_descent`. Ratings and whatever else is large come by :meth:`from_sparse`.

    TypeError for a mask that is not bool, ValueError for sizes that do not fit, nothing observed, NaN or infinity on Ω.

    >>> problem = Completion([[1.0, 2.0], [3.0, float("nan")]], [[True, False], [True, False]])
    >>> problem.loss(torch.zeros(2, 2)).item(), problem.observed_fraction
    (2.5, 0.5)
    """

    targets: Tensor | None
    mask: Tensor | None

    def __init__(self, target: Any, mask: Any, reduction: str = "mean") -> None:
        target, mask = checked_matrix("target", target, finite=False), _checked_mask(mask)
        if target.ndim > 3:
            raise ValueError(f"target must be (rows, columns) or (runs, rows, columns), got {tuple(target.shape)}")
        if target.shape[-2:] != mask.shape[-2:] or (target.ndim == mask.ndim == 3 and len(target) != len(mask)):
            raise ValueError(f"target {tuple(target.shape)} and mask {tuple(mask.shape)} must have the same sizes")
        mask = mask.to(target.device)
        counts = mask.sum(dim=(-2, -1))
        if not bool((counts > 0).all()):
            raise ValueError("the mask marks no entry as observed" + ("" if mask.ndim == 2 else " in some run"))
        self.targets = checked_matrix("target, on its observed entries,", torch.where(mask, target, 0))
        self.mask = mask
        self._set_scale(reduction, counts)

    @classmethod
    def from_sparse(cls, matrix: Any, reduction: str = "mean") -> Self:
        """Take the stored entries of a scipy sparse matrix as the observed ones: a stored zero is one of them.

        Nothing of the matrix's full shape is allocated, here or in descent. Errors as of the class, and ValueError for
        an index out of range and for an entry stored twice, the first of them named.

        >>> Completion.from_sparse(sparse.coo_array(([4.0, 0.0], ([0, 1], [2, 0])), shape=(2, 3))).count
        2
        """
        return cls._of(Entries.from_sparse(matrix), reduction)

    @classmethod
    def _of(cls, entries: Entries, reduction: str) -> Self:
        if entries.count == 0:
            raise ValueError(f"a matrix of shape {entries.shape} with no stored entry: nothing is observed")
        problem = cls.__new__(cls)
        problem.targets = problem.mask = None
        problem.entries = entries
        problem._set_scale(reduction, torch.tensor(entries.count))
        return problem

    def _set_scale(self, reduction: str, counts: Tensor) -> None:
        self.reduction = checked_choice("reduction", reduction, ("mean", "sum"))
        self.count: int | Tensor = counts if counts.ndim else int(counts)
        counts = counts.to(torch.float64)
        first = float(counts.reshape(-1)[0])
        self.scale = 1.0 / first if reduction == "mean" else 1.0
        # Runs that observe differently many entries differ in the mean: s_i = scale · share_i.
        uneven = reduction == "mean" and bool((counts != first).any())
        self._shares = (first / counts)[:, None, None] if uneven else None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.entries.shape if self.targets is None else (self.targets.shape[-2], self.targets.shape[-1])

    @property
    def runs(self) -> int | None:
        """Number of problems side by side; None when there is one."""
        return None if self.targets is None or self.targets.ndim == 2 else self.targets.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the target."""
        return self.entries.torch_dtype if self.targets is None else self.targets.dtype

    @property
    def observed_fraction(self) -> float | Tensor:
        """p, the share of the entries that is observed; one number, or one per run with a mask of its own."""
        entries = self.shape[0] * self.shape[1]
        return self.count / entries if isinstance(self.count, int) else self.count.to(torch.float64) / entries

    @cached_property
    def entries(self) -> Entries:
        """The observed entries by row and by column, of one problem on a CPU."""
        if self.targets is None or self.mask is None or self.runs is not None:
            raise ValueError(f"this problem holds {self.runs} runs; entries are those of one, take select(…)")
        return Entries.from_dense(self.targets.cpu().numpy(), self.mask.cpu().numpy())

    @cached_property
    def _seen(self) -> Tensor:
        """The mask as numbers."""
        assert self.mask is not None
        return self.mask.to(self.dtype)

    def residual(self, outputs: Tensor) -> Tensor:
        """Return Ω ⊙ (outputs − target), dense; ValueError for a problem from a sparse matrix."""
        if self.targets is None:
            raise ValueError(
                "this problem was made from a sparse matrix and never forms one of its full shape: take gradient_at or "
                "factor_gradients, networks with a hidden layer on a CPU, or dense() for the problem on full matrices"
            )
        return (outputs * self._seen).sub_(self.targets)

    def loss_of(self, residual: Tensor) -> Tensor:
        """Return the objective from a residual; one number, or one per run."""
        total = 0.5 * self.scale * residual.square().sum(dim=(-2, -1))
        return total if self._shares is None else total * self._shares[:, 0, 0].to(total)

    def pull_back(self, residual: Tensor) -> Tensor:
        """Return the derivative with respect to W_{L:1}, over ``scale``: the residual, times its run's share."""
        return residual if self._shares is None else residual * self._shares.to(residual)

    def gradient_at(self, weights: Sequence[Tensor]) -> Tensor | sparse.csr_array:
        """Return s Ω ⊙ (W_L … W_1 − target), the derivative with respect to the product, (m, n).

        A tensor, or for a problem from a sparse matrix a scipy CSR matrix of the observed entries.
        """
        if self.targets is not None:
            return super().gradient_at(weights)
        residual = self._sparse_residual(weights)
        residual.data *= self.scale
        return residual

    def surrogate(self) -> Tensor | sparse.csr_array:
        """Return (1/p) Ω ⊙ target (…, m, n), whose mean over random Ω is the target; a tensor or CSR, as given."""
        if self.targets is None:
            values = self.entries.by_row
            return with_values(values, values.data / self.observed_fraction)
        fraction = self.observed_fraction
        return self.targets / (fraction if isinstance(fraction, float) else fraction[:, None, None].to(self.targets))

    def factor_gradients(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective at A B and its derivatives s R Bᵀ (…, m, k) in A and s Aᵀ R (…, k, n) in B.

        R = Ω ⊙ (A B − target) is dense for runs side by side and on other devices; else observed entries alone are
        touched.
        """
        if self.runs is not None or left.ndim == 3 or left.device.type != "cpu":
            residual = self.residual(self.outputs(left @ right))
            pulled = self.scale * self.pull_back(residual)
            return self.loss_of(residual), pulled @ right.mT, left.mT @ pulled
        from lowdyn.problems.observed import ObservedProducts  # numba is slow to import

        products = ObservedProducts(self.to(left.dtype).entries, left.shape[-1])
        products.left.copy_(left)
        products.right.copy_(right)
        loss = torch.tensor(self.scale * products.compute(), dtype=left.dtype)
        return loss, self.scale * products.left_gradient, self.scale * products.right_gradient

    def _sparse_residual(self, weights: Sequence[Tensor]) -> sparse.csr_array:
        from lowdyn.problems.observed import observed_residual  # numba is slow to import

        if len(weights) < 2:
            raise ValueError(
                "one weight has the full shape of the matrix; take dense() for the problem on full matrices"
            )
        split = narrowest_split(weights)
        return observed_residual(self.entries, product_of(weights[split:]), product_of(weights[:split]))

    def curvature(self) -> tuple[float, float]:
        """Return σ_1 of the surrogate and p: the observed part of a gradient is on average p of it (theory §2)."""
        surrogate, fraction = self.surrogate(), torch.as_tensor(self.observed_fraction, dtype=torch.float64)
        share = 1.0 if self._shares is None else self._shares[:, 0, 0]
        stretch = float((fraction * share).max())
        if isinstance(surrogate, Tensor):
            return spectral_norm(surrogate), stretch
        return float(leading_singular_vectors(surrogate, 1)[1][0]), stretch

    def same_as(self, other: Problem) -> bool:
        """Return whether ``other`` observes the same entries with the same values and the same reduction."""
        if self is other:
            return True
        if not isinstance(other, Completion) or (self.shape, self.runs) != (other.shape, other.runs):
            return False
        if self.reduction != other.reduction:
            return False
        if self.targets is None or other.targets is None:
            return self.entries.same_as(other.entries)
        assert self.mask is not None
        assert other.mask is not None
        return torch.equal(self.targets, other.targets) and bool((self.mask == other.mask).all())

    def dense(self) -> Completion:
        """Return the problem with its target and mask as full (m, n) matrices."""
        if self.targets is not None:
            return self
        values = self.entries.by_row
        seen = with_values(values, np.ones(len(values.data), dtype=bool))
        return Completion(values.toarray(), seen.toarray(), self.reduction)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Self:
        """Return this problem with its data in ``dtype`` on ``device``; one from a sparse matrix stays on the CPU."""
        if self.targets is None:
            if device is not None and torch.device(device).type != "cpu":
                raise ValueError(
                    f"a problem from a sparse matrix lives on the CPU, not on {device}; take dense() first"
                )
            return self if dtype == self.dtype else self._of(self.entries.astype(_numpy(dtype)), self.reduction)
        if dtype == self.dtype and device in (None, self.targets.device):
            return self
        assert self.mask is not None
        return self._like(self.targets.to(device, dtype), self.mask.to(device))

    def select(self, runs: Tensor) -> Self:
        """Return the problems of some ``runs`` (indices); data that all runs share stays shared."""
        if self.targets is None or self.mask is None or self.runs is None:
            return self
        return self._like(self.targets[runs], self.mask[runs] if self.mask.ndim == 3 else self.mask)

    def _like(self, targets: Tensor, mask: Tensor) -> Self:
        copy = self.__class__.__new__(self.__class__)
        copy.targets, copy.mask = targets, mask
        copy._set_scale(self.reduction, mask.sum(dim=(-2, -1)))
        return copy


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def _checked_mask(value: Any) -> Tensor:
    mask = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must hold True where observed, of dtype bool, got {mask.dtype}; compare with 0 first")
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be (rows, columns) or (runs, rows, columns), got {tuple(mask.shape)}")
    return mask
