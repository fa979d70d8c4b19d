"""The spectrum of what the biases leave: where the factors start, and how strongly they are held back."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lowdyn.recovery.observations import Observations, Values


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Leading singular triplets of D_r^(-¼) R D_c^(-¼), and what of them is noise.

    R is the centred matrix, zero where nothing was observed and an entry times its weight where it has one; D_r and
    D_c count the observations of its rows and columns: with the exponent ½ on the counts frequent rows do not take the
    spectrum for themselves (the weighted trace norm of Salakhutdinov and Srebro 2010, arXiv 1002.2780, half way to the
    plain one). ``left`` (rows, rank) and ``right`` (columns, rank) are mapped back, so that left · diag(values) ·
    rightᵀ is about the observed share of R, whatever the unit of the weights: ``values``, ``edge`` and ``level`` grow
    as its root.
    """

    left: Values
    values: Values
    right: Values
    edge: float  # largest singular value once every entry has a random sign: no structure survives, the noise does
    level: float  # the largest value of the surrogate R / (observed fraction): about that of the matrix sought

    @classmethod
    def of(cls, observations: Observations, rank: int, random_state: np.random.RandomState) -> Spectrum:
        """Return the spectrum of centred observations by randomized subspace iteration (deterministic for a state).

        Values that are all zero have a spectrum of zero.
        """
        from sklearn.utils.extmath import randomized_svd

        by_row = _quarter(observations.row_counts)
        by_column = _quarter(observations.column_counts)
        balance = by_row[observations.rows] * by_column[observations.columns]
        scaled = observations.weighed(observations.values * balance).astype(observations.values.dtype)
        matrix = observations.to_csr(scaled)
        signs = random_state.choice(np.array([-1, 1], scaled.dtype), size=len(scaled))
        left, values, right_t = randomized_svd(matrix, rank, n_iter=4, random_state=random_state)
        noise: Any = observations.to_csr(scaled * signs)
        edge = float(randomized_svd(noise, 1, n_oversamples=7, n_iter=6, random_state=random_state)[1][0])
        # Rows and columns without entries are no part of the matrix.
        held = (int(np.count_nonzero(counts)) for counts in (observations.row_counts, observations.column_counts))
        # Of entries, not of observations: the counts above have taken the unit of the weights off the product.
        fraction = len(observations) / prod(held)
        left, right = by_row[:, None] * left, by_column[:, None] * right_t.T
        return cls(left.astype(scaled.dtype), values, right.astype(scaled.dtype), edge, float(values[0]) / fraction)


def _quarter(counts: Any) -> Values:
    """Return counts^(-¼), and zero for zero."""
    return np.where(counts > 0, np.where(counts > 0, counts, 1) ** -0.25, 0.0)
