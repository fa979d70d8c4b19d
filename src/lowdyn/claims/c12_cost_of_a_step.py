"""C12. A compressed step costs in proportion to the width, an original one much more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, at_least, at_most, shown
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.cost import COST
from lowdyn.experiments.experiment import by_setting
from lowdyn.observe.depth import line_fit
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C12"
PART = "use"
TITLE = "Cost of a step"
CLAIM = "With a fixed number of observed entries a row, a compressed step costs O(Ld), an original one O(Ld²) or more."
SOURCE = "Lecture, 'From Deep Matrix Factorization to Completion?'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "O(Ld²) → O(Ld)."
DEVIATION = (
    "Widths 100 … 5 000, 50 observed entries a row, L = 3, r̂ = 5, float64; the original up to 400 (smoke), 1 000 "
    "(quick) or 5 000 (paper). The products of the original's d x d factors cost O(d³)."
)
DIFFERENCE = (
    "The original's exponent is nearer to 3 than to 2, since its factors are multiplied with one another; the "
    "compressed network's is below 1, since parts of its step do not grow with d."
)
SCALE_NOTE = ""
EXPERIMENTS = (COST,)
TIMED = EXPERIMENTS


def check(datasets: Datasets) -> list[Check]:
    """Judge the exponents of the time of a step in d."""
    lines = _seconds(datasets)
    exponents = {name: line_fit(np.log(list(sizes)), np.log(list(sizes.values())))[0] for name, sizes in lines.items()}
    both = max(set(lines["original"]) & set(lines["compressed"]))
    return [
        at_most("exponent of the compressed step's time in d", exponents["compressed"], 1.2),
        at_least("exponent of the original step's time in d", exponents["original"], 1.8),
        shown(
            f"time of a step at d = {both:g}, original over compressed",
            lines["original"][both] / lines["compressed"][both],
            "—",
        ),
        shown("seconds of a compressed step at the largest d", list(lines["compressed"].values())[-1], "—"),
    ]


def _seconds(datasets: Datasets) -> dict[str, dict[float, float]]:
    """Return the mean seconds of a step by network and size, sizes ascending."""
    return {
        network: {size: float(seconds.mean()) for size, seconds in sizes.items()}
        for network, sizes in _timed(datasets).items()
    }


def _timed(datasets: Datasets) -> dict[str, dict[float, np.ndarray]]:
    cells = {name: by_setting(datasets[COST.name], "size", network=name) for name in ("compressed", "original")}
    return {
        name: {float(size): cell["step_seconds"].values for size, cell in sizes.items()}
        for name, sizes in cells.items()
    }


def draw(datasets: Datasets) -> Figure:
    """Draw the seconds of a step against the width, mean and range over seeds."""
    lines = [over_seeds(name, list(sizes), np.array(list(sizes.values()))) for name, sizes in _timed(datasets).items()]
    return curves(lines, x_label="width d", y_label="seconds of a step", log_x=True, log_y=True, title="Cost of a step")
