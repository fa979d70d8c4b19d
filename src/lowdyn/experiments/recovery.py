"""What experiments on a target share: masks, the error on what was not seen, how far apart two networks are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowdyn.networks import DeepLinearNetwork
from lowdyn.trajectory import Record


class UnseenError:
    """Probe: ``error``, the relative Frobenius error ‖(W_{L:1} − Φ)_Ωᶜ‖/‖Φ_Ωᶜ‖ on the entries not seen, one per run.

    ``mask`` is True where Φ is seen; None counts every entry.
    """

    def __init__(self, target: Tensor, mask: Tensor | None) -> None:
        self.target = target
        self.unseen = None if mask is None else (~mask).to(target.dtype)
        self.norm = self._part(target).norm(dim=(-2, -1))

    def _part(self, matrix: Tensor) -> Tensor:
        return matrix if self.unseen is None else matrix * self.unseen

    def of(self, end_to_end: Tensor) -> Tensor:
        """Return the error of a matrix (…, m, n)."""
        return self._part(end_to_end - self.target).norm(dim=(-2, -1)) / self.norm

    def begin(self, model: Any) -> UnseenError:
        """Look at ``model``."""
        self.model: DeepLinearNetwork = model
        self.coords: dict[str, Any] = {}
        return self

    def __call__(self, step: int) -> Record:
        """Return the error now."""
        error = self.of(self.model.end_to_end())
        return {"error": (("run",) if error.ndim else (), error.numpy())}


def random_mask(*shape: int, observed_fraction: float, generator: torch.Generator) -> Tensor:
    """Draw which entries are seen, each with the same probability by itself."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64) < observed_fraction


def relative_difference(network: DeepLinearNetwork, other: DeepLinearNetwork) -> float:
    """Return the largest |W_l − W'_l| of any entry over ‖W_l‖, in the worst layer."""
    pairs = zip(network.weights, other.weights, strict=True)
    return max(float((one - two).abs().max() / torch.linalg.matrix_norm(one, 2)) for one, two in pairs)


def first_below(data: xr.Dataset, variable: str, level: float) -> float:
    """Return the first recorded step at which ``variable`` (step,) is below ``level``; NaN if at none.

    >>> first_below(xr.Dataset({"error": ("step", [1.0, 0.1])}, coords={"step": [0, 50]}), "error", 0.5)
    50.0
    """
    below = data["step"].values[data[variable].values < level]
    return float(below[0]) if len(below) else float(np.nan)
