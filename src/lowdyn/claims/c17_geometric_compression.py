"""C17. Features compress at a geometric rate: log D_l is a straight line over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdyn.claims.claim import Check, Datasets, numbers_text, shown
from lowdyn.claims.layerwise import ACTIVATIONS, check_decay, draw_decay
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.orthonormal import DEPTHS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C17"
PART = "see"
TITLE = "Geometric compression over depth"
CLAIM = "In trained networks D_l = tr Σ_W / tr Σ_B falls geometrically from layer to layer, linear and ReLU."
SOURCE = "Lecture, 'Progressive feature compression with linear rate'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "Linear, L = 8: D_l = 11.2, 2.08, 0.385, 0.0714, 0.0132, 0.00246, 4.57e-4, 8.49e-5."
DEVIATION = (
    "Linear networks run on to a loss of 1e-10 (published 1e-6): the law speaks of zero loss, and what is left at 1e-6 "
    "bends the deepest layers. Smoke and quick leave out the ReLU network of depth 10 (80 000 steps), smoke depth 8."
)
DIFFERENCE = ""
SCALE_NOTE = (
    "Only paper scale judges ReLU networks of depth 10, by the worst of ten seeds: R² is 0.93 in two and 0.9499 in a "
    "third of them, where 0.95 is asked."
)
EXPERIMENTS = (DEPTHS,)
LIMITS = {"linear": 0.999, "relu": 0.95}


def check(datasets: Datasets) -> list[Check]:
    """Judge R² of the line through log D_l over l = 0 … L − 1, in the worst seed of each network."""
    checks: list[Check] = []
    for settings, cell in each_cell(datasets[DEPTHS.name]):
        activation, depth = settings["activation"], settings["depth"]
        checks += check_decay(cell, f"{ACTIVATIONS[activation]}, L = {depth}", LIMITS[activation])
        if (activation, depth) == ("linear", 8):
            mean = cell["within_between_ratio"].mean("seed").values
            published = PUBLISHED.removeprefix("Linear, L = 8: D_l = ").rstrip(".")
            checks.append(shown("D_l, linear, L = 8, l = 0 … 7", numbers_text(mean), published))
    return checks


def draw(datasets: Datasets) -> Figure:
    """Draw D_l against the layer, linear and ReLU side by side, mean and range over seeds."""
    return draw_decay(datasets[DEPTHS.name], "L = {depth}", "Within-class over between-class scatter")
