"""C26. Compressed sensing of a matrix needs no more steps than the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_most, shown
from lowdyn.claims.seeds import held, over_seeds
from lowdyn.experiments.experiment import by_setting
from lowdyn.experiments.sensing import SENSING
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C26"
PART = "use"
TITLE = "Matrix sensing"
CLAIM = (
    "From Gaussian measurements, a compressed network with the spectral start recovers a matrix in no more steps than "
    "the original."
)
SOURCE = "Kwon et al. 2024, arXiv 2311.05061, matrix sensing"
PUBLISHED = "22 (original) and 19 (compressed) blocks of 50 steps; on a GPU 3.8 s and 3.2 s."
DEVIATION = (
    "Paper scale as published (d = 200, r = 5, 4 000 measurements). Smoke: d = 30, r = 2, 400; quick: d = 60, r = 3, "
    "1 000. Recovered means a relative error of 1e-3."
)
DIFFERENCE = (
    "At paper scale 1 500 and 1 350 steps lead to a relative error of 1e-3, where the published figure shows 1 100 "
    "and 950 to a loss of 1e-12, which is stricter. Why ours take more is not known; of the same paper's completion "
    "too the figure shows 158 blocks of steps, and a run of its own code takes 264. The published times are a GPU's, "
    "ours are not compared."
)
SCALE_NOTE = ""
EXPERIMENTS = (SENSING,)


def check(datasets: Datasets) -> list[Check]:
    """Judge the steps to a relative error of 1e-3, in the worst seed; a run that does not get there fails."""
    runs = _runs(datasets)
    steps = {name: run["steps_to_1e_3"] for name, run in runs.items()}
    ratios = steps["compressed"] / steps["original"]
    return [
        at_most("steps to a relative error of 1e-3, compressed over original", ratios, 1.0),
        *(
            shown(f"steps of the {name} network (mean over seeds)", float(steps[name].mean()), published)
            for name, published in (("original", "1 100 to 1e-12 in the loss"), ("compressed", "950"))
        ),
    ]


def _runs(datasets: Datasets) -> dict[str, xr.Dataset]:
    return by_setting(datasets[SENSING.name], "network")


def draw(datasets: Datasets) -> Figure:
    """Draw the relative error against the step, mean and range over seeds."""
    lines = [over_seeds(name, run["step"], held(run, "error")) for name, run in _runs(datasets).items()]
    return curves(
        lines, x_label="step", y_label="relative error", log_y=True, title="Sensing", limit=("recovered", 1e-3)
    )
