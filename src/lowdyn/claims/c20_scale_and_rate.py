"""C20. A smaller start compresses faster per layer: D_{l+1}/D_l ∝ ε²."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdyn.claims.claim import Check, Datasets, near, shown
from lowdyn.claims.layerwise import ACTIVATIONS, decay, draw_decay
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.orthonormal import SCALES
from lowdyn.observe.depth import line_fit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C20"
PART = "see"
TITLE = "Smaller start, faster compression"
CLAIM = "The factor by which D_l falls per layer is proportional to ε² in linear networks."
SOURCE = "Lecture, 'Effects of initialization scale'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "Per-layer ratio 0.137, 0.035, 0.0086 at ε = 0.5, 0.25, 0.125 (linear); 0.094, 0.029, 0.018 (ReLU)."
DEVIATION = "L = 4, lr 10 as published; linear networks run on to a loss of 1e-10 (C17); one, three, ten seeds."
DIFFERENCE = (
    "Linear networks that run on to 1e-10 have a ratio of 0.0344 at ε = 0.25, the papers' code, which stops at 1e-6, "
    "0.0347 (published: 0.035). ReLU ratios are means over seeds and the published ones of one: the ten of paper "
    "scale reach from 0.083 to 0.099, 0.028 to 0.036 and 0.015 to 0.020."
)
SCALE_NOTE = ""
EXPERIMENTS = (SCALES,)
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
    exponents = [line_fit(np.log(list(linear)), np.log(seed))[0] for seed in zip(*linear.values(), strict=True)]
    return [
        near("exponent of ε in the per-layer ratio, linear (the seed farthest from 2)", exponents, 2.0, 0.05),
        *(
            shown(f"per-layer ratio, {ACTIVATIONS[one]}, ε = {scale:g}", float(values.mean()), RATIOS[one, scale])
            for (one, scale), values in ratios.items()
        ),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw D_l against the layer for each ε."""
    return draw_decay(datasets[SCALES.name], "ε = {init_scale:g}", "Compression and the scale of the start")
