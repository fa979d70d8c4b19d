"""*image-mlp*, *hybrid*, *real-depths*, *digits-mlp*: perceptrons learn to classify real images.

The lecture and Wang et al. 2023 (arXiv 2311.02960) train width 1024 on CIFAR-10. Here: SGD with momentum 0.9 and a
rate that falls as a cosine to 0, batches of 128, cross entropy; the data sets that are found, else scikit-learn's
digits. An orthogonal start of gain √2 keeps the size of ReLU features, one of gain 1 that of linear ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.fitting import described, fit, tensors
from lowdyn.experiments.starts import STARTS
from lowdyn.networks import MLP
from lowdyn.observe import layer_features, layer_metrics

DRAWN = 600  # samples whose features are kept for the picture
RECORDS = 30  # of neural collapse, spaced evenly in the logarithm of the epoch
RANK_TOLERANCE = 1e-3  # of numerical rank, times the largest singular value


def run(
    *,
    images: ImageSet,
    samples: int,
    width: int,
    depth: int,
    epochs: int,
    lr: float,
    generator: torch.Generator,
    relu_layers: int | None = None,
    start: str = "orthogonal",
    gain: float = math.sqrt(2),
    rule: str = "sgd",
    weight_decay: float = 1e-4,
    loss: str = "cross entropy",
    output_scale: float = 1.0,
    probed: bool = False,
    collapsing: bool = False,
    shuffled: bool = False,
) -> xr.Dataset:
    """Return the training curve, metrics of the features z^0 … z^(L−1) on the training images, and 2-D pictures.

    ``embedding`` (layer, sample, axis) are the first two principal components of each layer's features, scaled
    to unit root mean square; ``label`` (sample) their classes. ``relu_layers`` of the layers are ReLU layers, all by
    default. ``start`` is "orthogonal", "normal", "uniform" or torch's "default", scaled by ``gain``. ``probed`` adds
    ``numerical_rank`` and ``probe_accuracy``, by a linear classifier fitted and scored on the training images;
    ``collapsing`` adds neural collapse at the classifier's input after some of the epochs: ``nc1`` … ``nc4`` over
    ``record``, with the ``epoch`` and its ``training_accuracy``. ``shuffled`` measures by permuted labels, a negative
    control.
    """
    images = images.take(min(samples, len(images.labels)))
    inputs, labels = tensors(images)
    sizes = (inputs.shape[1], *[width] * (depth - 1), images.num_classes)
    chosen = None if start == "default" else STARTS[start]
    model = MLP(sizes, gain, start=chosen, relu_layers=relu_layers, output_scale=output_scale, generator=generator)
    measured = labels[torch.randperm(len(labels), generator=generator)] if shuffled else labels
    collapse = Collapse(model, inputs, measured, images.num_classes, epochs if collapsing else 0)
    curve = fit(
        model,
        inputs,
        labels,
        epochs=epochs,
        lr=lr,
        generator=generator,
        rule=rule,
        weight_decay=weight_decay,
        loss=loss,
        on_epoch=collapse.after_epoch,
    )
    pattern = rf"^({'|'.join(model.features)})$"
    metrics = layer_metrics(
        model,
        [(inputs, measured)],
        images.num_classes,
        pattern,
        rank_tolerance=RANK_TOLERANCE if probed else None,
        probe=[(inputs, measured)] if probed else None,
    )
    features = layer_features(model, inputs[:DRAWN], pattern)
    metrics = metrics.assign_coords(layer=range(depth)).assign(
        embedding=(("layer", "sample", "axis"), np.stack([plane(one) for one in features.values()])),
        label=("sample", measured[:DRAWN].numpy()),
        loss=curve["loss"],
        accuracy=curve["accuracy"],
    )
    return metrics.merge(collapse.records(curve)).assign_attrs(described(images))


def plane(features: Tensor) -> np.ndarray:
    """Return the first two principal components, of unit root mean square."""
    centred = features.to(torch.float64) - features.to(torch.float64).mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = left[:, :2] * values[:2]
    return np.asarray((plane / plane.square().mean().sqrt()).numpy())


class Collapse:
    """Looks for neural collapse at the classifier's input after some of the epochs, none where there are none."""

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, num_classes: int, epochs: int) -> None:
        self.model, self.batches, self.num_classes = model, [(inputs, labels)], num_classes
        spaced = np.geomspace(1, max(1, epochs), RECORDS).round().astype(int)
        self.epochs: list[int] = np.unique(spaced).tolist() if epochs else []
        self.seen: list[xr.Dataset] = []

    def after_epoch(self, epoch: int) -> None:
        """Look at the model if it is time."""
        if epoch in self.epochs:
            metrics = layer_metrics(self.model, self.batches, self.num_classes, "^output$", collapse=True)
            self.seen.append(metrics.sel(layer="output.input", drop=True)[["nc1", "nc2", "nc3", "nc4"]])

    def records(self, curve: xr.Dataset) -> xr.Dataset:
        """Return what was seen over ``record``, with the accuracy of the epoch that ended then."""
        if not self.seen:
            return xr.Dataset()
        accuracy = curve["accuracy"].values[np.array(self.epochs) - 1]
        return xr.concat(self.seen, dim="record").assign(
            epoch=("record", self.epochs), training_accuracy=("record", accuracy)
        )


CIFAR_OR_DIGITS = ("cifar10", "digits")

IMAGE_MLP = Experiment(
    "image-mlp",
    run,
    {
        "smoke": Plan(grid(samples=1000, width=128, depth=10, epochs=100, lr=0.02)),
        "quick": Plan(grid(samples=5000, width=256, depth=10, epochs=40, lr=0.02)),
        "paper": Plan(grid(samples=50_000, width=1024, depth=10, epochs=100, lr=0.02), seeds=3),
    },
    images=CIFAR_OR_DIGITS,
)

# Four ReLU layers and six linear ones, the last of which is the classifier, from the smallest start of 0.5, 0.7 and 1
# that ten layers leave within these epochs. The paper's own network has three and four.
_LECTURE = {"depth": 10, "relu_layers": 4, "gain": 0.7, "lr": 0.02, "probed": True}
_PUBLISHED = {
    **{"depth": 7, "relu_layers": 3, "gain": 0.1, "lr": 1e-4, "epochs": 400, "probed": True},
    **{"loss": "squared error", "output_scale": 100.0},
}
HYBRID = Experiment(
    "hybrid",
    run,
    {
        "smoke": Plan(grid(samples=500, width=64, epochs=100, **_LECTURE)),
        "quick": Plan(grid(samples=4000, width=256, epochs=40, **_LECTURE)),
        "paper": Plan(grid(samples=50_000, width=1024, **_PUBLISHED), seeds=3),
    },
    images=CIFAR_OR_DIGITS,
)

_DEPTHS = {"depth": [5, 7, 9], "start": "default", "gain": 1.0, "rule": "adam", "lr": 1e-3, "weight_decay": 0.0}
_REAL_DEPTHS = {
    "smoke": Plan(grid(samples=500, width=64, epochs=60, **_DEPTHS)),
    "quick": Plan(grid(samples=2000, width=128, epochs=40, **_DEPTHS)),
    "paper": Plan(grid(samples=50_000, width=1024, epochs=100, **_DEPTHS), seeds=3),
}
REAL_DEPTHS_FASHION = Experiment("real-depths-fashion", run, _REAL_DEPTHS, images=("fashion_mnist", "digits"))
REAL_DEPTHS_CIFAR = Experiment("real-depths-cifar", run, _REAL_DEPTHS, images=CIFAR_OR_DIGITS)

# The rate and decay of Zhu et al. 2021 (arXiv 2105.02375); most of the epochs lie past zero training error.
_COLLAPSE = {"lr": 0.05, "weight_decay": 5e-4, "collapsing": True}
DIGITS_MLP = Experiment(
    "digits-mlp",
    run,
    {
        "smoke": Plan(grid(samples=500, width=64, depth=6, epochs=100, **_COLLAPSE)),
        "quick": Plan(grid(samples=1000, width=128, depth=10, epochs=800, **_COLLAPSE)),
        "paper": Plan(grid(samples=1500, width=256, depth=10, epochs=10_000, **_COLLAPSE), seeds=3),
    },
    images=("digits",),
)
