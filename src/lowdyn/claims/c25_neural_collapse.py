"""C25. Past zero training error the last features collapse: NC1, NC2 and NC3 fall."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, numbers_text, shown
from lowdyn.claims.seeds import over_seeds
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.image_mlp import DIGITS_MLP
from lowdyn.plots import curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C25"
PART = "see"
TITLE = "Neural collapse at the last layer"
CLAIM = (
    "Trained past zero error, the features before the classifier shrink to their class means (NC1 → 0), which become "
    "a simplex frame (NC2 → 0) that the classifier aligns with (NC3 → 0)."
)
SOURCE = "Lecture, references; Zhu et al. 2021, arXiv 2105.02375; Papyan et al. 2020"
PUBLISHED = "NC1, NC2 and NC3 fall towards 0 during 200 epochs on MNIST and CIFAR-10 (ResNet18)."
DEVIATION = (
    "The perceptron of Zhu et al.'s public code (six normalized ReLU layers, torch's default start) in place of its "
    "ResNet18, on scikit-learn's digits; its rate of 0.05, falling as a cosine and not in steps, and its decay 5e-4. "
    "Smoke: 500 images, width 64, three layers, 150 epochs (600 steps); quick: 1 000, width 128, 1 600 epochs (12 800 "
    "steps); paper: 1 500, width 256, 3 500 epochs (42 000 steps, with rates that add up to the published 78 000's). "
    "NC2 is that of the class means, NC3 the distance of classifier and class means, each of norm 1."
)
DIFFERENCE = (
    "They fall towards 0 and do not reach it: at quick scale NC2 ends at 0.08 and NC3 at 0.15. How much farther they "
    "fall in longer runs only the paper scale would say."
)
SCALE_NOTE = (
    "The rates of all steps add up to a seventieth of the published sum at smoke scale, to a third at quick scale, to "
    "all of it at paper scale."
)
EXPERIMENTS = (DIGITS_MLP,)
MEASURES = ("nc1", "nc2", "nc3")


def check(datasets: Datasets) -> list[Check]:
    """Judge how often the last value goes into that at 50 % accuracy, in the worst seed."""
    ((_, data),) = each_cell(datasets[DIGITS_MLP.name])
    seeds = [data.sel(seed=seed) for seed in data["seed"]]
    falls = {name: [_fall(seed, name) for seed in seeds] for name in MEASURES}
    ends = {name: data[name].isel(record=[0, -1]).mean("seed").values for name in (*MEASURES, "nc4")}
    shares = [float((seed["training_accuracy"] >= 1).mean()) for seed in seeds]
    return [
        *(
            at_least(f"{name.upper()} at 50 % accuracy over {name.upper()} at the end", several, 5)
            for name, several in falls.items()
        ),
        *(
            shown(f"{name.upper()} after the first and the last epoch", numbers_text(ends[name]), "→ 0")
            for name in ends
        ),
        shown("share of the records at zero training error", float(np.mean(shares)), "—"),
    ]


def _fall(run: xr.Dataset, name: str) -> float:
    """The value at the first record of at least 50 % accuracy over the last; NaN without such a record."""
    learnt = np.flatnonzero(run["training_accuracy"].values >= 0.5)
    return float(run[name][learnt[0]] / run[name][-1]) if len(learnt) else float("nan")


def draw(datasets: Datasets) -> Figure:
    """Draw NC1 to NC3 against the epoch, mean and range over seeds."""
    ((_, data),) = each_cell(datasets[DIGITS_MLP.name])
    epoch = data["epoch"].isel(seed=0)
    series = [over_seeds(name.upper(), epoch, data[name]) for name in MEASURES]
    return curves(
        series, x_label="epoch", y_label="distance from collapse", log_x=True, log_y=True, title="Neural collapse"
    )
