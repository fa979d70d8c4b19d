"""C21. … but a smaller start trains slower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, at_least, below, shown
from lowdyn.claims.layerwise import decay
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.experiment import by_setting
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
DIFFERENCE = ""
SCALE_NOTE = ""
EXPERIMENTS = (SPEED,)


def check(datasets: Datasets) -> list[Check]:
    """Judge that the steps rise strictly at every halving, in every seed."""
    cells = dict(sorted(by_setting(datasets[SPEED.name], "init_scale").items(), reverse=True))
    steps = np.array([cell["steps"] for cell in cells.values()])
    losses = [cell["loss"].min("step") for cell in cells.values()]  # a run ends where it has reached its tolerance
    return [
        at_least("smallest rise of the steps from one ε to the next smaller, any seed", np.diff(steps, axis=0), 1),
        below("largest final loss", losses, 1e-6),
        *(
            shown(f"steps to 1e-6, ε = {scale:g} (mean over seeds)", float(taken.mean()), "—")
            for scale, taken in zip(cells, steps, strict=True)
        ),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw steps to the tolerance and the factor by which D_l falls per layer against ε: one is bought by the other."""
    cells = by_setting(datasets[SPEED.name], "init_scale")
    steps = np.array([cell["steps"] for cell in cells.values()], dtype=float)
    ratios = np.array([decay(cell)[0] for cell in cells.values()])
    lines = [
        over_seeds(name, list(cells), values)
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
