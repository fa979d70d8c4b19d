"""How a quantity goes with depth: lines through log D_l and S_l, as several claims judge them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from lowdyn.plots import Series


def line_fit(layers: Any, values: Any) -> tuple[float, float]:
    """Return slope and R² of the least-squares line through ``values`` over ``layers``.

    >>> line_fit([0, 1, 2], [1.0, 3.0, 5.0])
    (2.0, 1.0)
    """
    layers, values = np.asarray(layers, dtype=float), np.asarray(values, dtype=float)
    slope = np.polyfit(layers, values, 1)[0]
    correlation = np.corrcoef(layers, values)[0, 1]
    return float(round(slope, 12)), float(round(correlation**2, 12))


def decay(cell: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return, per seed, the factor by which D_l falls from one layer to the next, and R² of its geometric law."""
    fits = [line_fit(cell["layer"], np.log(cell["within_between_ratio"].sel(seed=seed))) for seed in cell["seed"]]
    slopes, r_squared = np.array(fits).T
    return np.exp(slopes), r_squared


def over_layers(cell: xr.Dataset, variable: str, name: str, **style: Any) -> Series:
    """Return mean and range over seeds of ``variable`` against the layer, to draw."""
    values = cell[variable]
    several: dict[str, Any] = {}
    if cell.sizes["seed"] > 1:
        several = {"low": values.min("seed").values, "high": values.max("seed").values}
    return Series(name, cell["layer"].values, values.mean("seed").values, **several, **style)


def settings_text(values: Iterable[float]) -> str:
    """Write numbers for a table: four digits, separated by commas.

    >>> settings_text([0.13712, 0.0351])
    '0.1371, 0.0351'
    """
    return ", ".join(f"{value:.4g}" for value in values)
