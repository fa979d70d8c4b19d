"""How a quantity goes with depth: lines through log D_l and S_l, as several claims judge and draw them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from lowdyn.claims.claim import Check, at_least, at_most, below
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.experiment import each_cell
from lowdyn.observe.depth import geometric_rate
from lowdyn.plots import Series, layer_curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ACTIVATIONS = {"linear": "linear", "relu": "ReLU"}


def decay(cell: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return, per seed, the factor by which D_l falls from one layer to the next, and R² of its geometric law."""
    fits = [geometric_rate(cell["within_between_ratio"].sel(seed=seed), cell["layer"]) for seed in cell["seed"]]
    rates, r_squared = np.array(fits).T
    return rates, r_squared


def check_decay(cell: xr.Dataset, name: str, limit: float) -> list[Check]:
    """Judge, in the worst seed, that D_l falls and R² of its geometric law."""
    rates, r_squared = decay(cell)
    return [
        at_least(f"R² of log D_l, {name}", r_squared, limit),
        below(f"D_{{l+1}}/D_l, {name}, largest", rates, 1.0),
    ]


def draw_decay(data: xr.Dataset, label: str, title: str) -> Figure:
    """Draw D_l against the layer, a panel for each activation, a line for each cell: ``label`` with its settings."""
    panels: dict[str, list[Series]] = {}
    for settings, cell in each_cell(data):
        series = over_layers(cell, "within_between_ratio", label.format_map(settings))
        panels.setdefault(ACTIVATIONS[settings["activation"]], []).append(series)
    return layer_curves(panels, y_label="Dₗ", title=title)


def check_progressive(data: xr.Dataset, layers: str = "") -> list[Check]:
    """Judge, in the worst seed, that D_l falls and discrimination rises from layer to layer; ``layers`` says which."""
    compression, separation = (
        [rank_correlation(data["layer"], data[name].sel(seed=seed)) for seed in data["seed"]]
        for name in ("within_between_ratio", "class_discrimination")
    )
    return [
        at_most(f"Spearman correlation of layer and D_l{layers}", compression, -0.9),
        at_least(f"Spearman correlation of layer and discrimination{layers}", separation, 0.8),
    ]


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
