"""C7. Implicit low-rank bias: as ε → 0 the inert scale vanishes, for all t."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.block_form import TOLERANCE
from lowdyn.claims.claim import Check, Datasets, at_most, near, numbers_text
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.theorem import THEOREM_SCALES
from lowdyn.experiments.theorem_large import THEOREM_LARGE_SQUARE
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C7"
PART = "predict"
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
DIFFERENCE = ""
SCALE_NOTE = ""
EXPERIMENTS = (THEOREM_SCALES, THEOREM_LARGE_SQUARE)


def check(datasets: Datasets) -> list[Check]:
    """Judge the tails of the weights and of their product, in every run at every recorded step."""
    cells = sorted(each_cell(datasets[THEOREM_SCALES.name]), key=lambda cell: -cell[0]["init_scale"])
    rows = []
    for settings, run in cells:
        inert = settings["width"] - 2 * settings["rank"]
        scale, norm = run["predicted_scale"], float(run["weight_norm"].max(skipna=False))
        product = scale.prod("layer", skipna=False)
        last = run.isel(step=-1)
        rows.append(
            (
                _tail(run["singular_values"], "index", scale, inert) / norm,
                _tail(run["end_to_end_values"], "end_to_end_index", product, inert) / norm,
                float(scale.max(skipna=False)) / settings["init_scale"],
                float(product.max(skipna=False)) / settings["init_scale"],
                float(last["singular_values"].isel(index=2 * settings["rank"]).max(skipna=False)),
                float(last["end_to_end_values"].isel(end_to_end_index=settings["rank"]).max(skipna=False)),
            )
        )
    layer_tails, product_tails, scales, products, layer_ends, product_ends = np.array(rows).T
    swept = ", ".join(f"{settings['init_scale']:g}" for settings, _ in cells)
    return [
        near("d − 2r singular values of W_l off ρ_l(t), over max‖W_l‖", layer_tails, 0.0, TOLERANCE),
        near("d − 2r singular values of W_{L:1} off Πρ(t), over max‖W_l‖", product_tails, 0.0, TOLERANCE),
        at_most("largest ρ_l(t)/ε", scales, 1.0, tolerance=1e-12),
        at_most("largest Πρ(t)/ε", products, 1.0, tolerance=1e-12),
        *_large(datasets[THEOREM_LARGE_SQUARE.name]),
        Check(f"σ_{{2r+1}}(W_l) at the end, ε = {swept}", *_falling(layer_ends)),
        Check(f"σ_{{r+1}}(W_{{L:1}}) at the end, ε = {swept}", *_falling(product_ends)),
    ]


def _large(data: xr.Dataset) -> list[Check]:
    """Judge the same of the inert scales of wider networks, through the exact reduction."""
    checks = []
    for settings, run in each_cell(data):
        text = f"largest ρ_l(t)/ε at width {settings['width']}, ε = {settings['init_scale']:g}, by the reduction"
        checks.append(at_most(text, run["inert_scale"] / settings["init_scale"], 1.0, tolerance=1e-12))
    return checks


def _falling(values: np.ndarray) -> tuple[str, str, None, bool]:
    return numbers_text(values), "falling with ε", None, bool((np.diff(values) < 0).all())


def _tail(values: xr.DataArray, dim: str, scale: xr.DataArray, inert: int) -> float:
    """Largest distance from ``scale`` of the ``inert``-th nearest singular value: all of the tail lies within it."""
    distance = abs(values - scale).transpose(..., dim).values
    return float(np.sort(distance, axis=-1)[..., inert - 1].max())


def draw(datasets: Datasets) -> Figure:
    """Draw ρ_1(t) and Πρ(t) as predicted for each ε, mean and range over seeds."""
    lines = []
    for settings, run in each_cell(datasets[THEOREM_SCALES.name]):
        scale = run["predicted_scale"]
        name = f"ε = {settings['init_scale']:g}"
        lines.append(over_seeds(f"{name}: ρ₁", run["step"], scale.sel(layer=1), group=name))
        lines.append(over_seeds(f"{name}: Πρ", run["step"], scale.prod("layer"), dash=True, group=name))
    return curves(
        lines,
        x_label="step",
        y_label="inert singular value",
        title="Inert singular values: of W₁ (solid), of the product (dashed)",
        log_y=True,
    )
