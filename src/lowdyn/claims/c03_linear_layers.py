"""C3. Linear layers on top of nonlinear ones do what deep nonlinear layers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, at_most, shown
from lowdyn.claims.layerwise import over_layers, rank_correlation, settings_text
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.image_mlp import HYBRID
from lowdyn.plots import layer_curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C3"
PART = "see"
TITLE = "Linear layers mimic deep nonlinear ones"
CLAIM = (
    "In a hybrid of ReLU layers followed by linear ones the linear layers go on compressing and separating the "
    "classes although those are linearly separable already: feature rank rises and then falls, probe accuracy is at "
    "its top early."
)
SOURCE = "Lecture, 'Implication II: Linear Separability in Deeper Layers'; Wang et al. 2023, arXiv 2311.02960"
PUBLISHED = "3 ReLU + 4 linear layers, width 1024, CIFAR-10: feature rank 908 → 922 → 710, probe accuracy 88.5 → 100 %."
DEVIATION = (
    "Smoke and quick: 4 ReLU + 6 linear layers as the lecture has them; orthogonal start of scale 0.7, SGD with "
    "momentum 0.9, lr 0.02 falling as a cosine, decay 1e-4, cross entropy (from the published scale 0.1 ten layers do "
    "not leave zero); smoke: 500 images, width 64, 100 epochs; quick: 4 000, width 256, 40 epochs. Paper: the "
    "published start and rule on all images found, but none of the batch normalization that the public code has before "
    "every ReLU. CIFAR-10, or digits where it is not found. Rank counts singular values above 1e-3 of the largest, "
    "perhaps not the published way; the probe is ridge regression fitted and scored on the training images."
)
SCALE_NOTE = (
    "Another network: below paper scale the lecture's 4 ReLU + 6 linear layers from a start of scale 0.7, at paper "
    "scale 3 + 4 from 0.1, at which ten layers do not leave zero."
)
EXPERIMENTS = (HYBRID,)
PROBE_MARGIN = 0.01


def check(datasets: Datasets) -> list[Check]:
    """Judge every curve over the layers in the worst seed; the linear layers are those after the last ReLU."""
    ((settings, data),) = each_cell(datasets[HYBRID.name])
    linear = data.sel(layer=slice(settings["relu_layers"], None))  # from the features that the first of them is given
    compression, separation = (
        [rank_correlation(linear["layer"], linear[name].sel(seed=seed)) for seed in data["seed"]]
        for name in ("within_between_ratio", "class_discrimination")
    )
    rank = data["numerical_rank"].isel(layer=slice(1, None)).transpose("seed", "layer").values
    probe = data["probe_accuracy"].transpose("seed", "layer").values
    last = data.sizes["layer"] - 1
    early = -(-2 * data.sizes["layer"] // 3)
    return [
        at_most("Spearman correlation of layer and D_l, linear layers", np.max(compression), -0.9),
        at_least("Spearman correlation of layer and discrimination, linear layers", np.min(separation), 0.8),
        at_least("rise of feature rank from the first layer to its peak", np.min(rank.max(axis=1) - rank[:, 0]), 1),
        at_least("fall of feature rank from its peak to the last layer", np.min(rank.max(axis=1) - rank[:, -1]), 1),
        at_most(
            "probe accuracy below its maximum, best of the first two thirds of the layers",
            np.max(probe.max(axis=1) - probe[:, :early].max(axis=1)),
            PROBE_MARGIN,
        ),
        shown(f"D_l, l = 0 … {last}", settings_text(data["within_between_ratio"].mean("seed").values), "—"),
        shown(f"discrimination, l = 0 … {last}", settings_text(data["class_discrimination"].mean("seed").values), "—"),
        shown(f"feature rank, l = 1 … {last}", settings_text(rank.mean(axis=0)), "908 → 922 → 710"),
        shown(f"probe accuracy, l = 0 … {last}", settings_text(probe.mean(axis=0)), "88.5 → 100 %"),
        shown("accuracy on the training images at the end", _accuracy(data), "—"),
    ]


def _accuracy(data: xr.Dataset) -> float:
    return float(data["accuracy"].isel(step=-1).mean())


def draw(datasets: Datasets) -> Figure:
    """Draw compression, discrimination, rank and probe accuracy over the layers."""
    ((settings, data),) = each_cell(datasets[HYBRID.name])
    panels = {
        "Dₗ": "within_between_ratio",
        "discrimination": "class_discrimination",
        "feature rank": "numerical_rank",
        "probe accuracy": "probe_accuracy",
    }
    relu = settings["relu_layers"]
    network = f"{relu} ReLU + {settings['depth'] - relu} linear"
    curves = {name: [over_layers(data, variable, network)] for name, variable in panels.items()}
    return layer_curves(curves, log_y={"Dₗ"}, title="Features of a hybrid network")
