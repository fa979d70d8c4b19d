"""C3. Linear layers on top of nonlinear ones do what deep nonlinear layers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdyn.claims.claim import Check, Datasets, at_least, at_most, numbers_text, shown
from lowdyn.claims.layerwise import check_progressive, over_layers
from lowdyn.claims.seeds import at_end
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
    "Network, loss and rule of Wang et al.'s public code (normalized ReLU layers, linear ones, orthogonal start, "
    "squared error with output factor 100, SGD). Smoke: 1 000 images, width 128, 100 epochs; quick: 4 000, width 256, "
    "40 epochs; both make less than a hundredth of the published 156 000 steps, at ten times the rate of 1e-4 and "
    "from a start of scale 0.2, since they do not leave the published 0.1. Paper: all images found, as published. "
    "CIFAR-10, or digits where it is not found. Rank counts the singular values that make up 95 % of their sum, as "
    "published; the probe is ridge regression fitted and scored on the training images, where the published one is "
    "trained by SGD."
)
DIFFERENCE = (
    "Rank is at most the width, below paper scale 128 or 256. There it falls by 3 to 7 % from its peak, where 23 % "
    "are published, and the probe is right on 95 % and more of the training images after the first layer, where 88.5 "
    "% are. Which of width, number of images and steps makes the difference is not known."
)
SCALE_NOTE = "Below paper scale: less than a hundredth of the steps, ten times the rate, twice the scale of the start."
EXPERIMENTS = (HYBRID,)
PROBE_MARGIN = 0.01
SEPARABLE = 0.99  # of the training images right by a linear probe; published: 100 %
FURTHER = 0.5  # what the linear layers leave of D_l at most: ranks alone also fall where nothing is learnt


def check(datasets: Datasets) -> list[Check]:
    """Judge every curve over the layers in the worst seed; the linear layers are those after the last ReLU."""
    ((settings, data),) = each_cell(datasets[HYBRID.name])
    linear = data.sel(layer=slice(settings["relu_layers"], None))  # from the features that the first of them is given
    fall = linear["within_between_ratio"].isel(layer=-1) / linear["within_between_ratio"].isel(layer=0)
    features = data.isel(layer=slice(1, None))
    rank = features["feature_rank"].transpose("seed", "layer").values
    probe = features["probe_accuracy"].transpose("seed", "layer").values
    last, early = probe.shape[1], 2 * probe.shape[1] // 3
    return [
        *check_progressive(linear, ", linear layers"),
        at_most("D_l after the linear layers over D_l before them", fall, FURTHER),
        at_least("rise of feature rank from the first layer to its peak", rank.max(axis=1) - rank[:, 0], 1),
        at_least("fall of feature rank from its peak to the last layer", rank.max(axis=1) - rank[:, -1], 1),
        at_least("probe accuracy before the linear layers", linear["probe_accuracy"].isel(layer=0), SEPARABLE),
        at_most(
            "probe accuracy below its maximum, best before the last third of the layers",
            probe.max(axis=1) - probe[:, :early].max(axis=1),
            PROBE_MARGIN,
        ),
        shown(f"D_l, l = 0 … {last}", numbers_text(data["within_between_ratio"].mean("seed").values), "—"),
        shown(f"discrimination, l = 0 … {last}", numbers_text(data["class_discrimination"].mean("seed").values), "—"),
        shown(f"feature rank, l = 1 … {last}", numbers_text(rank.mean(axis=0)), "908 → 922 → 710"),
        shown(f"probe accuracy, l = 1 … {last}", numbers_text(probe.mean(axis=0)), "88.5 → 100 %"),
        shown("accuracy on the training images at the end", at_end(data, "accuracy"), "—"),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw compression, discrimination, rank and probe accuracy over the layers."""
    ((settings, data),) = each_cell(datasets[HYBRID.name])
    panels = {
        "Dₗ": "within_between_ratio",
        "discrimination": "class_discrimination",
        "feature rank": "feature_rank",
        "probe accuracy": "probe_accuracy",
    }
    data = data.isel(layer=slice(1, None))
    relu = settings["relu_layers"]
    network = f"{relu} ReLU + {settings['depth'] - relu} linear"
    curves = {name: [over_layers(data, variable, network)] for name, variable in panels.items()}
    return layer_curves(curves, log_y={"Dₗ"}, title="Features of a hybrid network")
