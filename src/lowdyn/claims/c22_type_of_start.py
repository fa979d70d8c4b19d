"""C22. The rate of compression hardly depends on the type of start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, at_most, shown
from lowdyn.claims.layerwise import ACTIVATIONS, decay, draw_decay
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.orthonormal import STARTS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C22"
PART = "see"
TITLE = "Orthogonal, normal or uniform start"
CLAIM = "Starts of equal norm, orthogonal, normal or uniform, give nearly the same geometric rate of compression."
SOURCE = "Lecture, 'Effects of initialization type'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "Last D_l (linear) 8.5e-5, 3.1e-5, 3.1e-5 for orthogonal, normal, uniform."
DEVIATION = (
    "L = 8, ε = 0.5, lr 1 as published; linear networks run on to a loss of 1e-10 (C17); smoke without ReLU; one, "
    "three, ten seeds."
)
DIFFERENCE = (
    "The published D_l are of one start each, ours geometric means over seeds: the ten of paper scale reach from "
    "2.2e-5 to 3.7e-5 (normal) and 2.2e-5 to 3.9e-5 (uniform)."
)
SCALE_NOTE = ""
EXPERIMENTS = (STARTS,)
LAST = {"orthogonal": 8.5e-5, "normal": 3.1e-5, "uniform": 3.1e-5}


def check(datasets: Datasets) -> list[Check]:
    """Judge how far the fitted ratios (mean over seeds) lie apart, linear and ReLU."""
    rates: dict[str, dict[str, float]] = {}
    checks: list[Check] = []
    for settings, cell in each_cell(datasets[STARTS.name]):
        activation, start = ACTIVATIONS[settings["activation"]], settings["start"]
        rates.setdefault(activation, {})[start] = float(decay(cell)[0].mean())
        if activation == "linear":
            last = float(np.exp(np.log(cell["within_between_ratio"].isel(layer=-1)).mean()))
            checks.append(shown(f"last D_l, linear, {start} (geometric mean over seeds)", last, LAST[start]))
    for activation, by_start in rates.items():
        apart = np.max(list(by_start.values())) / np.min(list(by_start.values())) - 1
        checks.append(at_most(f"spread of the per-layer ratio over starts, {activation}", apart, 0.2))
        ratios = ", ".join(f"{start} {ratio:.3f}" for start, ratio in by_start.items())
        checks.append(shown(f"per-layer ratios, {activation}", ratios, "—"))
    return checks


def draw(datasets: Datasets) -> Figure:
    """Draw D_l against the layer for each start."""
    return draw_decay(datasets[STARTS.name], "{start}", "Compression from different starts")
