"""C21. … but a smaller start trains slower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, at_least, shown
from lowdyn.claims.layerwise import decay
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.orthonormal import SPEED
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C21"
PART = "see"
TITLE = "Smaller start, slower training"
CLAIM = "Steps to a loss of 1e-6 rise as the scale ε of the start falls."
SOURCE = "Lecture, 'Tradeoffs between decay rate and convergence'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "A picture, at lr 0.1."
DEVIATION = "Smoke and quick run at lr 1, a tenth of the steps; paper scale at the published 0.1. L = 4."
SCALE_NOTE = ""
EXPERIMENTS = (SPEED,)


def check(datasets: Datasets) -> list[Check]:
    """Judge that the steps rise strictly at every halving, in every seed."""
    steps = {settings["init_scale"]: cell["steps"].values for settings, cell in each_cell(datasets[SPEED.name])}
    losses = [float(cell["loss"].min("step").max()) for _, cell in each_cell(datasets[SPEED.name])]
    ordered = np.array([steps[scale] for scale in sorted(steps, reverse=True)])
    return [
        at_least(
            "smallest rise of the steps from one ε to the next smaller, any seed", np.diff(ordered, axis=0).min(), 1
        ),
        Check("largest final loss", max(losses), "< 1e-06", 1e-6, bool(max(losses) < 1e-6)),
        *(
            shown(f"steps to 1e-6, ε = {scale:g} (mean over seeds)", float(steps[scale].mean()), "—")
            for scale in sorted(steps, reverse=True)
        ),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw steps to the tolerance and the factor by which D_l falls per layer against ε: one is bought by the other."""
    cells = [(settings["init_scale"], cell) for settings, cell in each_cell(datasets[SPEED.name])]
    scales = [scale for scale, _ in cells]
    steps = np.array([cell["steps"].values for _, cell in cells], dtype=float)
    ratios = np.array([decay(cell)[0] for _, cell in cells])
    lines = [
        over_seeds(name, scales, values)
        for name, values in (("steps to a loss of 1e-6", steps), ("Dₗ₊₁/Dₗ per layer", ratios))
    ]
    return curves(
        lines,
        x_label="scale ε of the start",
        y_label="steps; ratio",
        log_x=True,
        log_y=True,
        title="Speed against compression",
    )
