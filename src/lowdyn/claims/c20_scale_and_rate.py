"""C20. A smaller start compresses faster per layer: D_{l+1}/D_l ∝ ε²."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, near, shown
from lowdyn.claims.layerwise import decay, over_layers
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.orthonormal import SCALES
from lowdyn.plots import Series, layer_curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C20"
PART = "see"
TITLE = "Smaller start, faster compression"
CLAIM = "The factor by which D_l falls per layer is proportional to ε² in linear networks."
SOURCE = "Lecture, 'Effects of initialization scale'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "Per-layer ratio 0.137, 0.035, 0.0086 at ε = 0.5, 0.25, 0.125 (linear); 0.094, 0.029, 0.018 (ReLU)."
DEVIATION = "L = 4, lr 10 as published; linear networks run on to a loss of 1e-10 (C17); one, three, ten seeds."
SCALE_NOTE = ""
EXPERIMENTS = (SCALES,)
NAMES = {"linear": "linear", "relu": "ReLU"}
RATIOS = {
    ("linear", 0.5): 0.137,
    ("linear", 0.25): 0.035,
    ("linear", 0.125): 0.0086,
    ("relu", 0.5): 0.094,
    ("relu", 0.25): 0.029,
    ("relu", 0.125): 0.018,
}


def check(datasets: Datasets) -> list[Check]:
    """Judge the exponent of ε fitted to the linear networks' ratios; show every ratio."""
    ratios: dict[tuple[str, float], np.ndarray] = {}
    for settings, cell in each_cell(datasets[SCALES.name]):
        ratios[settings["activation"], settings["init_scale"]] = decay(cell)[0]
    linear = {scale: values for (activation, scale), values in ratios.items() if activation == "linear"}
    exponents = np.polyfit(np.log(list(linear)), np.log(np.array(list(linear.values()))), 1)[0]
    worst = float(exponents[np.argmax(abs(exponents - 2))])
    return [
        near("exponent of ε in the per-layer ratio, linear (the seed farthest from 2)", worst, 2.0, 0.05),
        *(
            shown(f"per-layer ratio, {activation}, ε = {scale:g}", float(values.mean()), RATIOS[activation, scale])
            for (activation, scale), values in ratios.items()
        ),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw D_l against the layer for each ε."""
    panels: dict[str, list[Series]] = {}
    for settings, cell in each_cell(datasets[SCALES.name]):
        series = over_layers(cell, "within_between_ratio", f"ε = {settings['init_scale']:g}")
        panels.setdefault(NAMES[settings["activation"]], []).append(series)
    return layer_curves(panels, y_label="Dₗ", title="Compression and the scale of the start")
