"""How a quantity goes with depth: lines through log D_l and S_l, as several claims judge and draw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from lowdyn.claims.seeds import over_seeds
from lowdyn.observe.depth import geometric_rate
from lowdyn.plots import Series


def decay(cell: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return, per seed, the factor by which D_l falls from one layer to the next, and R² of its geometric law."""
    fits = [geometric_rate(cell["within_between_ratio"].sel(seed=seed), cell["layer"]) for seed in cell["seed"]]
    rates, r_squared = np.array(fits).T
    return rates, r_squared


def rank_correlation(depth: Any, values: Any) -> float:
    """Return Spearman's correlation of ``depth`` and ``values``, NaN where a value is not known or none differs.

    Of ranks, so that a quantity and its logarithm give the same; rounded, so that 0.8 is 0.8.

    >>> rank_correlation([0, 1, 2, 3], [1.0, 3.0, 2.0, 4.0])
    0.8
    """
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return float("nan")
    return float(round(spearmanr(np.asarray(depth), values).statistic, 12))


def over_layers(cell: xr.Dataset, variable: str, name: str, **style: Any) -> Series:
    """Return mean and range over seeds of ``variable`` against the layer, to draw."""
    return over_seeds(name, cell["layer"], cell[variable], **style)
