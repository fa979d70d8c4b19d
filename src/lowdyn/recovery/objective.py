"""The objective of a deep factorization on the observed entries, its gradient, and rates taken from the data.

Centred entries r_ij are followed by Σ over (i, j) in Ω of ½ w_ij ((U C_1 … C_(L−2) Vᵀ)_ij + b_i + c_j − r_ij)², plus
½ λ (Σ_i √n_i ‖U_i‖² + Σ_j √n_j ‖V_j‖² + Σ_l ‖C_l‖²) + ½ κ (Σ_i b_i² + Σ_j c_j²), w the number of observations that an
entry stands for, mostly one, and n those of a row, a column.
At depth 2 the minimum carries a weighted trace norm, at depth 3 the sharper Schatten-⅔ quasi-norm: small singular
values go to zero on their own, which is how the rank given becomes a ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowdyn.problems.entries import Entries
from lowdyn.problems.observed import ObservedProducts
from lowdyn.problems.weighted import WeightedProducts
from lowdyn.recovery.biases import Biases
from lowdyn.recovery.observations import Observations, Values
from lowdyn.recovery.spectrum import Spectrum

_BLOCK = 1 << 18  # entries predicted at once


class Penalty(NamedTuple):
    """What holds the numbers back: λ on the factors, κ on the biases."""

    decay: float
    ridge: float


@dataclass(frozen=True, eq=False)
class Factors:
    """``left`` (rows, rank) · ``cores`` (rank, rank) each · ``right``ᵀ (rank, columns), and the biases."""

    left: Values
    cores: tuple[Values, ...]
    right: Values
    row_bias: Values
    column_bias: Values

    @classmethod
    def start(cls, spectrum: Spectrum, biases: Biases, depth: int, init_scale: float) -> Factors:
        """Return the spectral start: every factor orthonormal, in the weighted coordinates, times one scale.

        That is ``init_scale`` times the scale at which the product of all factors has the spectrum's level.
        """
        scale = init_scale * spectrum.level ** (1 / depth)
        rank, dtype = len(spectrum.values), spectrum.left.dtype
        cores = tuple(scale * np.eye(rank, dtype=dtype) for _ in range(depth - 2))
        alive = scale * (spectrum.values > 1e-6 * spectrum.values[0]).astype(dtype)  # others are rounding errors
        return cls(alive * spectrum.left, cores, alive * spectrum.right, biases.row, biases.column)

    @classmethod
    def of(cls, arrays: Sequence[Values]) -> Factors:
        """Return the factors made of arrays in the order of ``arrays``."""
        left, right, row_bias, column_bias, *cores = arrays
        return cls(left, tuple(cores), right, row_bias, column_bias)

    def arrays(self) -> list[Values]:
        """Return left, right, row biases, column biases, cores."""
        return [self.left, self.right, self.row_bias, self.column_bias, *self.cores]

    @property
    def core(self) -> Values:
        """The product of the cores (rank, rank)."""
        return product(self.cores, self.left)

    def scaled(self, scale: float) -> Factors:
        """Return factors whose product, and whose biases, are ``scale`` times these."""
        each = scale ** (1 / (2 + len(self.cores)))
        cores = tuple(each * core for core in self.cores)
        return Factors(each * self.left, cores, each * self.right, scale * self.row_bias, scale * self.column_bias)

    def without_product(self) -> Factors:
        """Return the biases alone: factors of zero."""
        return Factors(0 * self.left, self.cores, 0 * self.right, self.row_bias, self.column_bias)

    def at(self, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> Values:
        """Return entries of the product plus their biases, a block of them at a time."""
        left, values = self.left @ self.core, np.empty(len(rows), self.left.dtype)
        for begin in range(0, len(rows), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            values[part] = np.einsum("ik,ik->i", left[rows[part]], self.right[columns[part]])
        return values + self.row_bias[rows] + self.column_bias[columns]


def product(cores: Sequence[Values], like: Values) -> Values:
    """Return the product of the cores; the identity for none, of the width and type of ``like`` (…, rank)."""
    return reduce(np.matmul, cores, np.eye(like.shape[1], dtype=like.dtype))


class Objective:
    """The objective on one set of centred observations, for factors of one rank."""

    def __init__(self, observations: Observations, rank: int, *, discrepant_ratio: float, trained_biases: bool) -> None:
        self.rank = rank
        self.discrepant_ratio = discrepant_ratio
        self.trained_biases = trained_biases
        self.dtype = observations.values.dtype
        self.entries = Entries.from_sparse(observations.to_csr())
        self.count = observations.count
        self.counts = [one.astype(self.dtype) for one in (observations.row_counts, observations.column_counts)]
        # Biases are two more columns: A = [U C, b, 1] times B = [V, 1, c]ᵀ.
        self.products: ObservedProducts | WeightedProducts
        self.weights: list[Values] | None = None  # by row and by column
        if observations.weights is None:
            self.products = ObservedProducts(self.entries, rank + 2)
        else:
            weights = Entries.from_sparse(observations.to_csr(observations.weights))
            self.weights = [weights.by_row.data, weights.by_column.data]
            self.products = WeightedProducts(self.entries, self.weights[0], rank + 2)
        self.left, self.by_left = self.products.left.numpy(), self.products.left_gradient.numpy()
        self.right, self.by_right = self.products.right.mT.numpy(), self.products.right_gradient.mT.numpy()
        self.left[:, rank + 1], self.right[:, rank] = 1, 1

    def gradient(self, factors: Factors, penalty: Penalty) -> tuple[float, list[Values], list[Values]]:
        """Return the objective, its gradient, and a rate for every number of that, in the order of ``arrays``.

        The rate of a row is half of one over a bound on its own curvature: the sum of w ‖(V Cᵀ)_j‖² over the entries j
        of that row, plus its decay. That of a core takes the rows on both sides of it as independent of what is seen.
        """
        left, right, cores, (decay, ridge) = factors.left, factors.right, factors.cores, penalty
        rank, core, tiny = self.rank, factors.core, np.finfo(self.dtype).tiny
        outer_left, outer_right = left @ core, right @ core.T
        self.left[:, :rank], self.left[:, rank] = outer_left, factors.row_bias
        self.right[:, :rank], self.right[:, rank + 1] = right, factors.column_bias
        loss = self.products.compute()
        by_left, by_right = self.by_left, self.by_right
        decays = [decay * np.sqrt(counts)[:, None] for counts in self.counts]
        gradients: list[Values] = [
            by_left[:, :rank] @ core.T + decays[0] * left,
            by_right[:, :rank] + decays[1] * right,
        ]
        bounds = self._bounds(outer_left, outer_right)
        # Half, because both sides of the product move at once.
        rates: list[Values] = [0.5 / (bound[:, None] + one + tiny) for bound, one in zip(bounds, decays, strict=True)]
        gradients += [by_left[:, rank] + ridge * factors.row_bias, by_right[:, rank + 1] + ridge * factors.column_bias]
        rates += [self.trained_biases / (2 * (np.where(counts > 0, counts, 1) + ridge)) for counts in self.counts]

        grams = [one.T @ (counts[:, None] * one) for one, counts in zip((left, right), self.counts, strict=True)]
        between = left.T @ by_left[:, :rank]
        for place, one in enumerate(cores):
            before, after = product(cores[:place], left), product(cores[place + 1 :], left)
            gradients.append(before.T @ between @ after.T + decay * one)
            spread = _top(before.T @ grams[0] @ before) * _top(after @ grams[1] @ after.T) / self.count
            rates.append(np.asarray(1 / (self.discrepant_ratio * (4 * spread + decay + tiny)), self.dtype))
        squares = sum(float((d * one**2).sum()) for d, one in zip(decays, (left, right), strict=True))
        squares += decay * sum(float((one**2).sum()) for one in cores)
        squares += ridge * float((factors.row_bias**2).sum() + (factors.column_bias**2).sum())
        return loss + 0.5 * squares, gradients, rates

    def _bounds(self, left: Values, right: Values) -> list[Values]:
        """Return for every row the sum of w ‖right_j‖² over its entries, and for every column that of w ‖left_i‖²."""
        halves = (self.entries.by_row, self.entries.by_column)
        squares = [np.einsum("ik,ik->i", one, one) for one in (right, left)]
        each = [one[half.indices] for one, half in zip(squares, halves, strict=True)]
        if self.weights is not None:
            each = [one * weights for one, weights in zip(each, self.weights, strict=True)]
        return [_sums(one, half.indptr) for one, half in zip(each, halves, strict=True)]


def _sums(values: Values, starts: NDArray[np.int64]) -> Values:
    """Return the sums of values[starts[i]:starts[i + 1]]."""
    sums = np.zeros(len(starts) - 1, values.dtype)
    held = np.flatnonzero(np.diff(starts))
    sums[held] = np.add.reduceat(values, starts[held])
    return sums


def _top(gram: Values) -> float:
    return float(np.linalg.eigvalsh(gram)[-1])
