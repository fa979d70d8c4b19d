"""What several seeds become: in a picture a line through their mean, a band or bars from least to largest; in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from lowdyn.plots import Series


def over_seeds(
    name: str, x: ArrayLike, values: xr.DataArray | np.ndarray, *, along: str = "seed", **style: Any
) -> Series:
    """Return mean and range over seeds of ``values`` against ``x``, to draw; one seed has no range.

    ``values``: an array (points, seeds), or a DataArray with the dimension ``along`` and one of points. Where the
    value of a seed is not known neither is the mean: the line has a gap.

    >>> over_seeds("loss", [0, 1], np.array([[1.0, 3.0], [0.5, 1.5]])).high
    array([3. , 1.5])
    """
    rows = values if isinstance(values, xr.DataArray) else xr.DataArray(values, dims=("point", along))
    several: dict[str, Any] = {}
    if rows.sizes[along] > 1:
        several = {"low": rows.min(along, skipna=False).values, "high": rows.max(along, skipna=False).values}
    return Series(name, np.asarray(x), rows.mean(along, skipna=False).values, **several, **style)


def held(run: xr.Dataset, variable: str) -> xr.DataArray:
    """Return a variable over the steps in which a run that has stopped stays at its last value.

    Runs stop at their tolerance, one after another; the mean over seeds would jump wherever one of them leaves it.
    """
    values = run[variable].transpose("seed", "step")
    place = np.where(np.isfinite(values), np.arange(values.sizes["step"]), 0)
    last = xr.DataArray(np.maximum.accumulate(place, axis=1), dims=("seed", "step"))
    return values.isel(step=last).drop_vars("step")


def at_end(run: xr.Dataset, variable: str) -> float:
    """Return a variable at the last step, mean over seeds; NaN where that of a seed is not known.

    >>> at_end(xr.Dataset({"accuracy": (("seed", "step"), [[0.1, 0.5], [0.1, 1.0]])}), "accuracy")
    0.75
    """
    return float(run[variable].isel(step=-1).mean(skipna=False))


def mean_and_deviation(values: ArrayLike, digits: int) -> str:
    """Write mean and standard deviation over seeds, of one seed the value.

    >>> mean_and_deviation([0.5, 0.75], 3)
    '0.625 ± 0.177'
    """
    seeds = np.asarray(values, dtype=float)
    deviation = f" ± {seeds.std(ddof=1):.{digits}f}" if seeds.size > 1 else ""
    return f"{seeds.mean():.{digits}f}{deviation}"


def first_of(title: str, data: xr.Dataset) -> str:
    """Return a title that says so where a picture shows the first of several seeds.

    >>> first_of("Features", xr.Dataset(coords={"seed": [0, 1, 2]}))
    'Features, first of 3 seeds'
    """
    seeds = data.sizes["seed"]
    return f"{title}, first of {seeds} seeds" if seeds > 1 else title
