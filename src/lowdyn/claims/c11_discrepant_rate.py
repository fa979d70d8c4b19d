"""C11. Compressed completion stalls with frozen outer factors; a small rate of theirs mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, near, shown
from lowdyn.claims.seeds import held, over_seeds
from lowdyn.experiments.completion import COMPLETION
from lowdyn.experiments.experiment import by_setting
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C11"
PART = "use"
TITLE = "A discrepant learning rate completes"
CLAIM = (
    "A compressed network completes a matrix in the original's number of steps when its outer factors learn at "
    "γ = 0.01 of the inner rate; frozen, γ = 0, they leave it stalled."
)
SOURCE = "Lecture, 'From Deep Matrix Factorization to Completion?'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "Original and γ = 0.01 both near 19 500 steps (d = 1000); γ = 0 stalls at 5e-4 of a start at 8e-3."
DEVIATION = (
    "Paper scale: d = 1000, r = 5, 20 % observed as published, the original's steps taken from the figure and "
    "kept to 10 %. Smoke: d = 60, r = 2; quick: d = 150, r = 3; both 50 %, with the original beside and kept to "
    "25 %: at d = 60 γ = 0.01 takes 20 % more steps than it."
)
DIFFERENCE = (
    "At paper scale γ = 0 stalls at 0.24, where the figure shows 0.25, and γ = 0.01 takes 2 % more steps than the "
    "original in it. Smaller matrices stall at 0.28 (quick) and 0.41 (smoke) and take fewer steps. Times are a "
    "processor's: that the ratio at d = 150 is about the published one of a GPU at d = 1000 says nothing."
)
SCALE_NOTE = ""
EXPERIMENTS = (COMPLETION,)
TIMED = EXPERIMENTS
PUBLISHED_STEPS = 19_500.0  # of the original, in the published figure


def check(datasets: Datasets) -> list[Check]:
    """Judge the stall against the recovery, and the steps against the original's."""
    runs = _runs(datasets)
    moving, frozen = (runs[name] for name in ("γ = 0.01", "γ = 0"))
    original = float(runs["original"]["steps_to_1e_6"].mean(skipna=False)) if "original" in runs else PUBLISHED_STEPS
    # Measured: 14 850 steps against 12 400 at d = 60 (docs/results/smoke), 19 875 against 19 500 at d = 1000 (paper).
    tolerance = 0.25 if "original" in runs else 0.1
    steps = float(moving["steps_to_1e_6"].mean(skipna=False))
    stalled, completed = _last(frozen), _last(moving)
    checks = [
        at_least("error at the end, γ = 0 over γ = 0.01", stalled / completed, 100.0),
        near("steps of γ = 0.01 to an error of 1e-6", steps, original, tolerance * original),
        shown("error at the end, γ = 0.01 (relative, unseen entries)", completed, "—"),
        shown("error at the end, γ = 0", stalled, "0.25 (√(5e-4/8e-3))"),
    ]
    if "original" in runs:
        ratio = float((runs["original"]["step_seconds"] / moving["step_seconds"]).mean())
        checks.append(shown("time of a step, original over compressed", ratio, "7 (GPU, d = 1000)"))
    return checks


def _runs(datasets: Datasets) -> dict[str, xr.Dataset]:
    data = datasets[COMPLETION.name]
    compressed = by_setting(data, "discrepant_ratio", network="compressed")
    named = {f"γ = {ratio:g}": cell for ratio, cell in compressed.items()}
    return by_setting(data, "network", network="original") | named


def _last(run: xr.Dataset) -> float:
    return float(held(run, "error").isel(step=-1).mean(skipna=False))


def draw(datasets: Datasets) -> Figure:
    """Draw the error on unseen entries against the step, mean and range over seeds."""
    lines = [
        over_seeds(name, run["step"], held(run, "error"), dash=name == "γ = 0.01")
        for name, run in _runs(datasets).items()
    ]
    return curves(
        lines,
        x_label="step",
        y_label="relative error on unseen entries",
        log_y=True,
        title="Completion with frozen, slow and no outer factors",
        limit=("1e-6", 1e-6),
    )
