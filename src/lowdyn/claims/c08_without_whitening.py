"""C8. Without white inputs the invariant subspace is still invariant, nearly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_most, shown
from lowdyn.claims.seeds import first_of
from lowdyn.experiments.experiment import by_setting
from lowdyn.experiments.nonwhitened import NONWHITENED
from lowdyn.plots import surfaces

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C8"
PART = "predict"
TITLE = "Nearly invariant without whitening"
CLAIM = (
    "On Gaussian inputs that are not white, square weights still learn in about 2d_y directions: W_l(t) − W_l(0) has "
    "at most 5 % of its norm outside its top 2d_y directions."
)
SOURCE = "Lecture, 'Evolution of singular spaces in more generic settings'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "A picture. Measured with the authors' settings: 0.6–1.7 % outside; the bulk stays within 6e-4 of ε."
DEVIATION = (
    "None: d_x = 30, d_y = 3, 300 samples, L = 3, ε = 1, lr 1 on the mean loss, 10 000 steps; 1, 3, 10 seeds. Added: "
    "the same samples far from white, their rows scaled geometrically from 1 to 1/30, where the claim need not hold."
)
DIFFERENCE = (
    "The published values are of three seeds, ours of other draws: three reach from 0.6 to 1.8 %, ten (paper scale) "
    "from 0.5 to 1.8 %, and the bulk of the worst of the ten lies 9e-4 from ε."
)
SCALE_NOTE = ""
EXPERIMENTS = (NONWHITENED,)


def check(datasets: Datasets) -> list[Check]:
    """Judge the share of the update outside its top 2·d_y directions, in every square layer and seed."""
    whitest, *others = _by_condition(datasets)
    data = whitest[1]
    outside = _outside(data)
    bulk = _square(data)["singular_values"].isel(index=slice(_active(data), -_active(data)))
    return [
        at_most("norm of the update outside its top 2d_y directions, largest", outside, 0.05),
        shown("the same, smallest over layers and seeds", float(outside.min()), "0.006 … 0.017"),
        shown(
            "largest departure from ε of all but 2d_y singular values at either end",
            float(abs(bulk - data["init_scale"]).max()),
            6e-4,
        ),
        shown(
            "loss at the end over loss at the start",
            float((data["loss"].isel(step=-1) / data["loss"].isel(step=0)).max()),
            "—",
        ),
        *(
            shown(f"the first, rows of X scaled from 1 to 1/{condition:g}", float(_outside(far).max()), "—")
            for condition, far in others
        ),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw the singular values of the square weights over the steps, first seed."""
    (_, data), *_ = _by_condition(datasets)
    values = data["singular_values"].isel(seed=0)
    names = {1: "σᵢ of W₁(t)", 2: "σᵢ of W₂(t)"}
    panels = {names[layer]: values.sel(layer=layer).values for layer in range(1, min(3, int(data["depth"])))}
    return surfaces(data["step"].values, panels, title=first_of("Inputs that are not white", data))


def _by_condition(datasets: Datasets) -> list[tuple[float, xr.Dataset]]:
    """Return the runs by how far the inputs are from white, the judged one, of plain Gaussian samples, first."""
    return sorted(by_setting(datasets[NONWHITENED.name], "condition").items())


def _active(data: xr.Dataset) -> int:
    return 2 * int(data["outputs"])


def _square(data: xr.Dataset) -> xr.Dataset:
    return data.sel(layer=slice(1, int(data["depth"]) - 1))


def _outside(data: xr.Dataset) -> np.ndarray:
    """Return the share of each update's norm outside its top 2·d_y directions, over seeds and square layers."""
    energy = (_square(data)["update_values"] ** 2).transpose(..., "index").values
    return np.sqrt(energy[..., _active(data) :].sum(axis=-1) / energy.sum(axis=-1))
