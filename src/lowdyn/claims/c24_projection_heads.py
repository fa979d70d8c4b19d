"""C24. Projection heads, thrown away after pretraining, leave features that transfer better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, numbers_text, shown
from lowdyn.claims.layerwise import rank_correlation
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.heads import HEADS
from lowdyn.plots import Series, layer_curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C24"
PART = "see"
TITLE = "Projection heads help transfer"
CLAIM = (
    "The more layers are put on top of a backbone while it is pretrained, and taken off after, the less its features "
    "have compressed the classes it learnt (D rises) and the better a linear classifier on them tells new classes "
    "apart."
)
SOURCE = "Wang et al. 2023, arXiv 2311.02960; Li et al. 2022, arXiv 2212.12206"
PUBLISHED = (
    "From 1 to 5 layers of the head, D of the features rises from 8e-3 to 0.13, transfer accuracy from 60 to 67 %."
)
DEVIATION = (
    "Published: from one data set to another, rule not known. Here perceptrons, from one half of the classes of an "
    "image set to the other half: a backbone of five normalized ReLU layers, training as in C1. Smoke: 300 images, "
    "width 64, 60 epochs; quick: 1 500, width 128, 40 epochs, three seeds; paper: all images found, width 1024, 100 "
    "epochs. The probe is fitted on one half of all images of the new classes and scored on the other. CIFAR-10, or "
    "digits where it is not found."
)
SCALE_NOTE = ""
EXPERIMENTS = (HEADS,)


def check(datasets: Datasets) -> list[Check]:
    """Judge both rank correlations with the number of further layers, of the means over seeds."""
    extra, means = _means(datasets)
    ratio, accuracy = means["within_between_ratio"], means["probe_accuracy"]
    return [
        at_least("Spearman correlation of further layers and D of the features", rank_correlation(extra, ratio), 0.8),
        at_least("Spearman correlation of further layers and probe accuracy", rank_correlation(extra, accuracy), 0.8),
        shown("D on the classes learnt, 0 … 3 further layers", numbers_text(ratio), "rises"),
        shown("D on the new classes", numbers_text(means["transferred_ratio"]), "rises"),
        shown("probe accuracy on the new classes", numbers_text(accuracy), "rises"),
        shown("accuracy on the classes learnt, at the end", numbers_text(means["accuracy"]), "—"),
    ]


def _means(datasets: Datasets) -> tuple[list[int], dict[str, np.ndarray]]:
    cells = list(each_cell(datasets[HEADS.name]))
    rows = [{name: float(_last(cell[name]).mean()) for name in cell} for _, cell in cells]
    means = {str(name): np.array([row[name] for row in rows]) for name in rows[0]}
    return [int(settings["extra"]) for settings, _ in cells], means


def _last(values: xr.DataArray) -> xr.DataArray:
    return values.isel(step=-1) if "step" in values.dims else values


def draw(datasets: Datasets) -> Figure:
    """Draw D and probe accuracy against the number of further layers, mean and range over seeds."""
    panels: dict[str, list[Series]] = {}
    for title, variable in {
        "D on the classes learnt": "within_between_ratio",
        "probe accuracy": "probe_accuracy",
    }.items():
        values = [(settings["extra"], cell[variable]) for settings, cell in each_cell(datasets[HEADS.name])]
        x, y = [extra for extra, _ in values], [float(one.mean()) for _, one in values]
        low, high = ([float(getattr(one, edge)()) for _, one in values] for edge in ("min", "max"))
        panels[title] = [Series("backbone features", x, y, low, high)]
    return layer_curves(panels, log_y=False, x_label="further layers", title="What a projection head leaves behind")
