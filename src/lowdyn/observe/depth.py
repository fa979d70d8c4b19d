"""How a quantity goes with depth: the geometric law that a straight line through its logarithm is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class GeometricRate(NamedTuple):
    """The factor from one layer to the next, and how much of log-variance the law explains."""

    rate: float
    r_squared: float


def geometric_rate(values: ArrayLike, layers: ArrayLike | None = None) -> GeometricRate:
    """Fit values_l ≈ c · rate^l over the layers by least squares in the logarithm.

    ``values`` (layers,) are those of consecutive layers, or of ``layers`` (their depths). ``r_squared`` is the
    share of the variance of log values that the line explains; 1 for two layers, NaN for equal values. NaN where
    a value is not positive: such a sequence has no rate. ValueError for fewer than two.

    >>> rate, r_squared = geometric_rate([8.0, 4.0, 2.0, 1.0])
    >>> round(rate, 12), round(r_squared, 12)
    (0.5, 1.0)
    """
    sizes = np.asarray(values, dtype=float)
    depth = np.arange(sizes.size, dtype=float) if layers is None else np.asarray(layers, dtype=float)
    if sizes.ndim != 1 or sizes.size < 2 or depth.shape != sizes.shape:
        raise ValueError(f"a rate over depth needs two or more values (layers,), got {sizes.shape} at {depth.shape}")
    if not (sizes > 0).all():
        return GeometricRate(float("nan"), float("nan"))
    slope, r_squared = line_fit(depth, np.log(sizes))
    return GeometricRate(float(np.exp(slope)), r_squared)


def line_fit(layers: ArrayLike, values: ArrayLike) -> tuple[float, float]:
    """Return slope and R² of the least-squares line through ``values`` over ``layers``; R² of equal values is NaN.

    >>> line_fit([0, 1, 2], [1.0, 3.0, 5.0])
    (2.0, 1.0)
    """
    x, y = np.asarray(layers, dtype=float), np.asarray(values, dtype=float)
    x, y = x - x.mean(), y - y.mean()
    along, norms = float(x @ y), float(x @ x) * float(y @ y)
    r_squared = along**2 / norms if norms > 0 else float("nan")
    return along / float(x @ x), r_squared
