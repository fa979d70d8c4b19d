"""C24. Projection heads, thrown away after pretraining, leave features that transfer better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdyn.claims.claim import Check, Datasets, at_least, numbers_text, shown
from lowdyn.claims.layerwise import rank_correlation
from lowdyn.claims.seeds import at_end, mean_and_deviation, over_seeds
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.heads import HEADS
from lowdyn.plots import layer_curves

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
PUBLISHED = "A picture: transfer accuracy and D of the transferred features rise with the layers of the head."
DEVIATION = (
    "Published: from one data set to another, rule not known. Here perceptrons, from one half of the classes of an "
    "image set to the other half: a backbone of five normalized ReLU layers, training as in C1. Smoke: 300 images, "
    "width 64, 60 epochs; quick: 1 500, width 128, 40 epochs, three seeds; paper: all images found, width 1024, 100 "
    "epochs. The probe is fitted on one half of all images of the new classes and scored on the other. D is judged on "
    "the classes learnt, whose compression the head takes over; that of the new classes is shown. CIFAR-10, or digits "
    "where it is not found."
)
DIFFERENCE = (
    "Published is a picture of a rise. Here accuracy rises by 1.4 ± 0.8 points from none to three further layers at "
    "quick scale, and on digits it does not (−0.9 ± 2.1)."
)
SCALE_NOTE = (
    "At quick scale the accuracies of four heads rise but for one pair, by about as much as seeds differ; at smoke "
    "scale and on digits they do not."
)
EXPERIMENTS = (HEADS,)


def check(datasets: Datasets) -> list[Check]:
    """Judge both rank correlations with the number of further layers, of the means over seeds."""
    data = datasets[HEADS.name]
    extra = data["extra"].values
    names = ("within_between_ratio", "transferred_ratio", "probe_accuracy")
    ratio, transferred, probed = (data[name].mean("seed", skipna=False).values for name in names)
    accuracy = [at_end(cell, "accuracy") for _, cell in each_cell(data)]
    rise = 100 * (data["probe_accuracy"].isel(cell=-1) - data["probe_accuracy"].isel(cell=0))
    seeds = [mean_and_deviation(100 * cell, 2) for cell in data["probe_accuracy"]]
    return [
        at_least("Spearman correlation of further layers and D of the features", rank_correlation(extra, ratio), 0.8),
        at_least("Spearman correlation of further layers and probe accuracy", rank_correlation(extra, probed), 0.8),
        shown("D on the classes learnt, 0 … 3 further layers", numbers_text(ratio), "rises"),
        shown("D on the new classes", numbers_text(transferred), "rises"),
        shown("probe accuracy on the new classes, %", ", ".join(seeds), "rises"),
        shown("rise of probe accuracy, 0 to 3 further layers, points", mean_and_deviation(rise, 2), "> 0"),
        shown("accuracy on the classes learnt, at the end", numbers_text(accuracy), "—"),
    ]


def draw(datasets: Datasets) -> Figure:
    """Draw D and probe accuracy against the number of further layers, mean and range over seeds."""
    data = datasets[HEADS.name]
    titles = {"D on the classes learnt": "within_between_ratio", "probe accuracy": "probe_accuracy"}
    panels = {
        title: [over_seeds("backbone features", data["extra"], data[variable])] for title, variable in titles.items()
    }
    return layer_curves(panels, log_y=False, x_label="further layers", title="What a projection head leaves behind")
