"""C4. The singular values of W_l(t): 2r of them move, the middle d − 2r share one value ρ(t) and do not turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, at_most, near, shown
from lowdyn.claims.seeds import first_of
from lowdyn.experiments.evolution import EVOLUTION
from lowdyn.experiments.experiment import each_cell
from lowdyn.plots import surfaces

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C4"
PART = "predict"
TITLE = "Evolution of the SVD of the weights"
CLAIM = (
    "While a deep linear network learns a target of rank r, only 2r singular directions of every weight move; "
    "the middle d − 2r singular values share one value ρ(t) and their subspaces do not turn."
)
SOURCE = "Lecture, 'Evolution of SVD of the weight matrix'; Yaras et al. 2023, arXiv 2306.01154, theorem figure"
PUBLISHED = "Three surfaces over (index, step): singular values of W_1, angles of its right and left singular vectors."
DEVIATION = "None: d = 30, r = 3, L = 3, ε = 1, lr 1 on the mean loss, 50 steps at every scale; all layers judged."
DIFFERENCE = ""
SCALE_NOTE = ""
EXPERIMENTS = (EVOLUTION,)

EPS = float(np.finfo(np.float64).eps)


def check(datasets: Datasets) -> list[Check]:
    """Judge, in every layer and at every step, one middle value, its prediction, and a subspace at rest."""
    ((settings, data),) = each_cell(datasets[EVOLUTION.name])
    rank = settings["rank"]
    values = data["singular_values"]
    middle = values.isel(index=slice(rank, -rank))
    predicted = data["predicted_scale"]
    learning = values.isel(step=slice(1, None))  # all are equal at the start
    above = learning.isel(index=rank - 1) - learning.isel(index=rank)
    below = learning.isel(index=-rank - 1) - learning.isel(index=-rank)
    allowed = 50 * EPS * learning.isel(index=0) / np.minimum(above, below)
    checks = [
        near(
            "spread of the d − 2r middle singular values",
            middle.max("index", skipna=False) - middle.min("index", skipna=False),
            0.0,
            1e-12,
        ),
        near(
            "distance of the middle values from the predicted ρ_l(t)",
            abs(middle - predicted),
            0.0,
            1e-12,
        ),
    ]
    for side in ("right", "left"):
        turn = data[f"frame_{side}_turn"].sel(part="middle").isel(step=slice(1, None))
        # NaN where the gap is too small to tell directions apart would be no evidence: it counts as failing.
        checks.append(at_most(f"turn of the middle {side} subspace over 50·eps·σ_1/gap", turn / allowed, 1.0))
    moved = float(abs(values.isel(step=-1) - values.isel(step=0)).isel(index=0).min())
    return [
        *checks,
        shown("least move of a leading singular value", moved, "—"),
        shown("smallest singular value at the end", float(values.isel(index=-1, step=-1).min()), "—"),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw the three surfaces of the lecture for W_1 and the first seed, angles in degrees."""
    data = datasets[EVOLUTION.name].isel(cell=0).sel(layer=1)
    title = first_of("Singular value decomposition of W₁(t)", data)
    data = data.isel(seed=0)
    panels = {
        "singular values σᵢ(t)": data["singular_values"].values,
        "∠(vᵢ(t), vᵢ(1)), degrees": np.degrees(data["right_angles"].values),
        "∠(uᵢ(t), uᵢ(1)), degrees": np.degrees(data["left_angles"].values),
    }
    return surfaces(data["step"].values, panels, title=title)
