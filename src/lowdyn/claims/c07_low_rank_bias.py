"""C7. Implicit low-rank bias: as ε → 0 the inert scale vanishes, for all t."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.block_form import TOLERANCE
from lowdyn.claims.claim import Check, Datasets, at_most, shown
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.theorem import THEOREM_SCALES
from lowdyn.plots import Series, curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C7"
TITLE = "Implicit low-rank bias"
CLAIM = (
    "For all t the d − 2r inert singular values of W_l equal ρ_l(t) and those of W_{L:1} equal Πρ(t); both are at "
    "most ε and vanish with it, so that rank W_l ≤ 2r and rank W_{L:1} = r in the limit."
)
SOURCE = "Lecture, 'Implicit low-rank bias'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "lim ρ(t) = 0 as ε → 0 for all t; at most rank 2r."
DEVIATION = (
    "The lecture gives no settings: d = 30, r = 3, L = 3, ε from 1 to 0.01 (paper: to 0.003), 0.3 of the stable rate."
)
EXPERIMENTS = (THEOREM_SCALES,)


def check(datasets: Datasets) -> list[Check]:
    """Judge the tails of the weights and of their product, in every run at every recorded step."""
    cells = sorted(each_cell(datasets[THEOREM_SCALES.name]), key=lambda cell: -cell[0]["init_scale"])
    layer_tail, product_tail, above = 0.0, 0.0, 0.0
    ends: list[tuple[float, float]] = []
    for settings, run in cells:
        inert = settings["width"] - 2 * settings["rank"]
        scale, norm = run["predicted_scale"], run["weight_norm"].max(["step", "layer"])
        product = scale.prod("layer")
        layer_tail = max(layer_tail, float((_tail(run["singular_values"], "index", scale, inert) / norm).max()))
        product_tail = max(
            product_tail, float((_tail(run["end_to_end_values"], "end_to_end_index", product, inert) / norm).max())
        )
        above = max(
            above, float((scale / settings["init_scale"]).max()), float((product / settings["init_scale"]).max())
        )
        last = run.isel(step=-1)
        ends.append(
            (
                float(last["singular_values"].isel(index=2 * settings["rank"]).max()),
                float(last["end_to_end_values"].isel(end_to_end_index=settings["rank"]).max()),
            )
        )
    falls = np.diff(np.log(np.array(ends)), axis=0).max()
    scales = ", ".join(f"{settings['init_scale']:g}" for settings, _ in cells)
    return [
        at_most("d − 2r singular values of W_l off ρ_l(t), over max‖W_l‖", layer_tail, TOLERANCE),
        at_most("d − 2r singular values of W_{L:1} off Πρ(t), over max‖W_l‖", product_tail, TOLERANCE),
        at_most("largest ρ_l(t)/ε and Πρ(t)/ε", above, 1 + 1e-12),
        at_most(f"largest change of log σ_(2r+1)(W_l), log σ_(r+1)(W_L:1) between ε = {scales}", falls, 0.0),
        shown("σ_(2r+1)(W_l) at the smallest ε, at the end", ends[-1][0], "→ 0"),
        shown("σ_(r+1)(W_L:1) at the smallest ε, at the end", ends[-1][1], "→ 0"),
    ]


def _tail(values: xr.DataArray, dim: str, scale: xr.DataArray, inert: int) -> xr.DataArray:
    """Distance from ``scale`` of the ``inert``-th nearest singular value: all of the tail lies within it."""
    distance = abs(values - scale)
    return xr.DataArray(np.sort(distance.transpose(..., dim).values, axis=-1)[..., inert - 1])


def draw(datasets: Datasets) -> Figure:
    """Draw ρ_1(t) and Πρ(t) as predicted for each ε, first seed."""
    lines = []
    for settings, run in each_cell(datasets[THEOREM_SCALES.name]):
        scale = run["predicted_scale"].isel(seed=0)
        name = f"ε = {settings['init_scale']:g}"
        lines.append(Series(f"{name}: ρ_1", run["step"].values, scale.sel(layer=1).values, group=name))
        lines.append(Series(f"{name}: Πρ", run["step"].values, scale.prod("layer").values, dash=True, group=name))
    return curves(
        lines,
        x_label="step",
        y_label="inert singular value",
        title="Inert singular values: of W_1 (solid), of the product (dashed)",
        log_y=True,
    )
