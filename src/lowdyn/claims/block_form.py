"""The block form of the theorem, judged alike in both of its cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import xarray as xr

from lowdyn.claims.claim import Check, at_least, near
from lowdyn.experiments.experiment import each_cell
from lowdyn.plots import Series, curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOLERANCE = 1e-10


def check_blocks(data: xr.Dataset) -> list[Check]:
    """Judge every layer at every recorded step of every run, relative to the largest weight of its run."""
    residuals = {
        "blocks that must vanish": lambda run: run["off_block"],
        "inert block off a multiple of its start": lambda run: run["inert_spread"],
        "inert scale off the predicted ρ_l(t)": lambda run: abs(run["inert_scale"] - run["predicted_scale"]),
    }
    cells = [run for _, run in each_cell(data)]
    runs = data.sizes["cell"] * data.sizes["seed"]
    return [
        *(
            near(f"{name}, over max‖W_l‖ (worst of {runs} runs)", _relative(cells, residual), 0.0, TOLERANCE)
            for name, residual in residuals.items()
        ),
        at_least("fall of the loss, in the run that learns least", _falls(cells), 1e3),
        at_least("steps watched", [run["step"].max() for run in cells], 4000),
    ]


def check_large(data: xr.Dataset) -> list[Check]:
    """Judge the runs through the reduction: its first steps against the full network, its scales, its learning."""
    width, cells = int(data["width"].max()), [run for _, run in each_cell(data)]
    checked = data["checked_difference"]
    apart = [abs(run["inert_scale"] - run["predicted_scale"]) for run in cells]
    return [
        near(f"width {width}: reduced off full weights after 200 steps, over ‖W_l‖", checked, 0.0, TOLERANCE),
        near(f"width {width}: inert scale of the reduced run off the predicted ρ_l(t)", apart, 0.0, TOLERANCE),
        at_least(f"width {width}: fall of the loss over the reduced run", _falls(cells), 1e3),
    ]


def _relative(cells: Sequence[xr.Dataset], residual: Callable[[xr.Dataset], xr.DataArray]) -> list[xr.DataArray]:
    """Return every residual over the largest weight of its run."""
    return [residual(run) / run["weight_norm"].max(["step", "layer"], skipna=False) for run in cells]


def _falls(cells: Sequence[xr.Dataset]) -> list[xr.DataArray]:
    return [run["loss"].isel(step=0) / run["loss"].min("step", skipna=False) for run in cells]


def draw_blocks(data: xr.Dataset, title: str) -> Figure:
    """Draw the worst residual of each run's layers against the step, below the tolerance it is judged by."""
    lines = []
    for settings, run in each_cell(data):
        worst = run[["off_block", "inert_spread"]].to_array().max(["variable", "layer", "seed"])
        worst = worst / run["weight_norm"].max()
        decay = f", λ={settings['weight_decay']:g}" if settings["weight_decay"] else ""
        name = f"{settings['outputs']}x{settings['width']}, r={settings['rank']}, L={settings['depth']}"
        lines.append(Series(f"{name}, ε={settings['init_scale']:g}{decay}", run["step"].values, worst.values))
    return curves(
        lines, x_label="step", y_label="residual / max‖Wₗ‖", title=title, log_y=True, limit=("tolerance", TOLERANCE)
    )
