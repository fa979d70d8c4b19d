"""C8. Without white inputs the invariant subspace is still invariant, nearly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, at_most, shown
from lowdyn.claims.seeds import first_of
from lowdyn.experiments.experiment import each_cell
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
DEVIATION = "None: d_x = 30, d_y = 3, 300 samples, L = 3, ε = 1, lr 1 on the mean loss, 10 000 steps; 1, 3, 10 seeds."
SCALE_NOTE = ""
EXPERIMENTS = (NONWHITENED,)


def check(datasets: Datasets) -> list[Check]:
    """Judge the share of the update outside its top 2·d_y directions, in every square layer and seed."""
    ((settings, data),) = each_cell(datasets[NONWHITENED.name])
    square = data.sel(layer=slice(1, settings["depth"] - 1))
    active = 2 * settings["outputs"]
    values = square["update_values"]
    energy = (values**2).transpose(..., "index").values
    outside = np.sqrt(energy[..., active:].sum(axis=-1) / energy.sum(axis=-1))
    moved = abs(square["singular_values"] - settings["init_scale"]).transpose(..., "index").values
    bulk = np.sort(moved, axis=-1)[..., settings["width"] - active - 1]  # all but the 2·d_y that move most
    return [
        at_most("norm of the update outside its top 2d_y directions, largest", outside, 0.05),
        shown("the same, smallest over layers and seeds", float(outside.min()), "0.006 … 0.017"),
        shown("largest departure of the bulk from ε", float(bulk.max()), 6e-4),
        shown(
            "loss at the end over loss at the start",
            float((data["loss"].isel(step=-1) / data["loss"].isel(step=0)).max()),
            "—",
        ),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw the singular values of the square weights over the steps, first seed."""
    ((settings, data),) = each_cell(datasets[NONWHITENED.name])
    values = data["singular_values"].isel(seed=0)
    names = {1: "σᵢ of W₁(t)", 2: "σᵢ of W₂(t)"}
    panels = {names[layer]: values.sel(layer=layer).values for layer in range(1, min(3, settings["depth"]))}
    return surfaces(data["step"].values, panels, title=first_of("Inputs that are not white", data))
