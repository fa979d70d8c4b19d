"""New rows on fixed column factors: a ridge regression for each row."""

from __future__ import annotations

import numpy as np

from lowdyn.recovery.objective import Factors, Penalty
from lowdyn.recovery.observations import Observations, Values


def solve_rows(seen: Observations, factors: Factors, mean: float, penalty: Penalty, *, with_bias: bool) -> Values:
    """Return the left factor (rows, rank) that suits new rows, everything but it staying fixed.

    For each row the minimiser over u (and a bias b, ``with_bias``) of ½Σ(x_j − mean − c_j − b − (C Vᵀ)_jᵀ u)² +
    ½ λ √n ‖u‖² + ½ κ b², of smallest norm where that leaves freedom; zero for a row without entries.
    """
    fixed = factors.right @ factors.core.T
    rank = fixed.shape[1]
    design = np.column_stack([fixed, np.ones(len(fixed), fixed.dtype)]) if with_bias else fixed
    left = np.zeros((seen.shape[0], rank), fixed.dtype)
    values = seen.values - mean - factors.column_bias[seen.columns]
    for row in range(seen.shape[0]):
        part = slice(seen.starts[row], seen.starts[row + 1])
        if part.start < part.stop:
            known = design[seen.columns[part]]
            held = np.full(design.shape[1], penalty.decay * np.sqrt(part.stop - part.start))
            held[rank:] = penalty.ridge
            gram = known.T @ known + np.diag(held)
            left[row] = np.linalg.lstsq(gram, known.T @ values[part], rcond=None)[0][:rank]
    return left
