"""Slow twins of the estimator: dense, written as the equations are."""

import numpy as np
from torch import Tensor


def deep_objective(
    arrays: list[Tensor], target: Tensor, mask: Tensor, decay: float, ridge: float, weights: Tensor | None = None
) -> Tensor:
    """½ ‖Ω ⊙ (U C … C Vᵀ + b 1ᵀ + 1 cᵀ − X)‖² + ½ λ (Σ √n_i ‖U_i‖² + Σ √n_j ‖V_j‖² + Σ ‖C‖²) + ½ κ (‖b‖² + ‖c‖²).

    ``weights``, of the target's shape, multiply the squares of the residual, and are what n sums; else n counts.
    """
    left, right, row_bias, column_bias, *cores = arrays
    outputs = left
    for core in cores:
        outputs = outputs @ core
    residual = (outputs @ right.T + row_bias[:, None] + column_bias[None, :] - target)[mask]
    held = mask.to(left) if weights is None else weights * mask
    roots = [held.sum(dim=side).sqrt() for side in (1, 0)]
    squares = sum((root * one.square().sum(dim=1)).sum() for root, one in zip(roots, (left, right), strict=True))
    squares = squares + sum(core.square().sum() for core in cores)
    return 0.5 * (
        (held[mask] * residual.square()).sum()
        + decay * squares
        + ridge * (row_bias.square().sum() + column_bias.square().sum())
    )


def biases_by_least_squares(values: np.ndarray, counts: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Row and column biases of values (mean taken off) as one ridge regression on indicator columns.

    ``counts`` (m, n) says how many times an entry was observed: so many equations it gives. A mask is once or never.
    """
    rows, columns = (np.repeat(places, counts[counts > 0]) for places in np.nonzero(counts))
    m, n = values.shape
    design = np.zeros((len(rows), m + n))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), m + columns] = 1
    solution = np.linalg.solve(design.T @ design + ridge * np.eye(m + n), design.T @ values[rows, columns])
    return solution[:m], solution[m:]


def rows_by_least_squares(
    values: np.ndarray, seen: np.ndarray, fixed: np.ndarray, decay: float, ridge: float
) -> np.ndarray:
    """For each row the u of min over u, b of ½Σ(x_j − fixed_j · u − b)² + ½ decay √n ‖u‖² + ½ ridge b², stacked."""
    out = []
    for row, mask in zip(values, seen, strict=True):
        design = np.hstack([fixed[mask], np.ones((mask.sum(), 1))])
        penalty = np.diag(np.sqrt([decay * np.sqrt(mask.sum())] * fixed.shape[1] + [ridge]))
        stacked = np.vstack([design, penalty])
        out.append(np.linalg.lstsq(stacked, np.concatenate([row[mask], np.zeros(len(penalty))]), rcond=None)[0][:-1])
    return np.array(out)
