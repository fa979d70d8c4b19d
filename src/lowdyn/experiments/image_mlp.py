"""*image-mlp*, *hybrid*, *real-depths*, *digits-mlp*: perceptrons learn to classify real images.

The lecture and Wang et al. 2023 (arXiv 2311.02960) train width 1024 on CIFAR-10. From their public code *image-mlp* and
*hybrid* take network, start, loss and rule: no biases, a batch normalization before every ReLU, orthogonal weights of
scale 0.1, the squared error summed over classes, SGD with momentum 0.9 and decay 1e-4 in batches of 128, at a rate that
falls from 1e-4 as a cosine. Its 400 epochs of 50 000 images are 156 000 steps; short runs here have less than a
hundredth and ten times the rate. On the data sets that are found, else on scikit-learn's digits.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.experiments.fitting import fit, tensors
from lowdyn.experiments.frozen_features import nuclear_rank, probe_accuracy
from lowdyn.experiments.normalized import normalized_mlp
from lowdyn.experiments.starts import STARTS
from lowdyn.networks import MLP
from lowdyn.observe import layer_features, layer_metrics

DRAWN = 600  # samples whose features are kept for the picture
RECORDS = 30  # of neural collapse, spaced evenly in the logarithm of the epoch


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
    init_scale: float = 1.0,
    normalized: bool = False,
    bias: bool = True,
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
    default, each with a batch normalization where ``normalized``. ``start`` is "orthogonal", "normal", "uniform" or
    torch's "default", times ``init_scale``. ``probed`` adds, of z^1 on, ``feature_rank`` (see
    :func:`~lowdyn.experiments.frozen_features.nuclear_rank`) and the ``probe_accuracy`` of a linear classifier fitted
    and scored on the training images;
    ``collapsing`` adds neural collapse at the classifier's input after some of the epochs: ``nc1`` … ``nc4`` over
    ``record``, with the ``epoch`` and its ``training_accuracy``. ``shuffled`` measures by permuted labels, a negative
    control.
    """
    images = images.take(min(samples, len(images.labels)))
    inputs, labels = tensors(images)
    sizes = (inputs.shape[1], *[width] * (depth - 1), images.num_classes)
    chosen = None if start == "default" else STARTS[start]
    build = normalized_mlp if normalized else MLP
    options: dict[str, Any] = {"start": chosen, "relu_layers": relu_layers, "bias": bias, "output_scale": output_scale}
    model = build(sizes, init_scale, generator=generator, **options)
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
    metrics = layer_metrics(model, [(inputs, measured)], images.num_classes, pattern)
    if probed:
        metrics = metrics.assign(_worth(model, inputs, measured, images.num_classes))
    features = layer_features(model, inputs[:DRAWN], pattern)
    metrics = metrics.assign_coords(layer=range(depth)).assign(
        embedding=(("layer", "sample", "axis"), np.stack([plane(one) for one in features.values()])),
        label=("sample", measured[:DRAWN].numpy()),
        loss=curve["loss"],
        accuracy=curve["accuracy"],
    )
    names = json.dumps(images.class_names)
    return metrics.merge(collapse.records(curve)).assign_attrs(described(images), class_names=names)


def _worth(model: MLP, inputs: Tensor, labels: Tensor, num_classes: int) -> dict[str, tuple[str, list[float]]]:
    """Return rank and probe accuracy of the features of every layer, one after another; NaN for the input."""
    ranks, accuracies = [np.nan], [np.nan]
    for name in model.features:
        features = layer_features(model, inputs, f"^{name}$")[name]
        ranks.append(nuclear_rank(features))
        accuracies.append(probe_accuracy(features, labels, num_classes))
    return {"feature_rank": ("layer", ranks), "probe_accuracy": ("layer", accuracies)}


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

_WANG = {"normalized": True, "bias": False, "loss": "squared error", "lr": 1e-3}
_MLP = {"depth": 10, "init_scale": 0.1, **_WANG}
IMAGE_MLP = Experiment(
    "image-mlp",
    run,
    {
        "smoke": Plan(grid(samples=1000, width=128, epochs=100, **_MLP)),
        "quick": Plan(grid(samples=5000, width=256, epochs=40, **_MLP)),
        "paper": Plan(grid(samples=50_000, width=1024, epochs=100, **_MLP), seeds=3),
    },
    images=CIFAR_OR_DIGITS,
)

# The published hybrid of "8 layers": three ReLU layers, four linear ones and the classifier. Below paper scale it
# starts from the smallest scale of 0.1, 0.2 and 0.3 that it leaves within these steps.
_HYBRID = {"depth": 8, "relu_layers": 3, "output_scale": 100.0, "probed": True, **_WANG}
HYBRID = Experiment(
    "hybrid",
    run,
    {
        "smoke": Plan(grid(samples=1000, width=128, epochs=100, init_scale=0.2, **_HYBRID)),
        "quick": Plan(grid(samples=4000, width=256, epochs=40, init_scale=0.2, **_HYBRID)),
        "paper": Plan(grid(samples=50_000, width=1024, epochs=400, init_scale=0.1, **{**_HYBRID, "lr": 1e-4}), seeds=3),
    },
    images=CIFAR_OR_DIGITS,
)

_DEPTHS = {"depth": [5, 7, 9], "start": "default", "rule": "adam", "lr": 1e-3, "weight_decay": 0.0}
_REAL_DEPTHS = {
    "smoke": Plan(grid(samples=500, width=64, epochs=60, **_DEPTHS)),
    "quick": Plan(grid(samples=2000, width=128, epochs=40, **_DEPTHS)),
    "paper": Plan(grid(samples=50_000, width=1024, epochs=100, **_DEPTHS), seeds=3),
}
REAL_DEPTHS_FASHION = Experiment("real-depths-fashion", run, _REAL_DEPTHS, images=("fashion_mnist", "digits"))
REAL_DEPTHS_CIFAR = Experiment("real-depths-cifar", run, _REAL_DEPTHS, images=CIFAR_OR_DIGITS)

# The perceptron of Zhu et al. 2021 (arXiv 2105.02375): six normalized ReLU layers and the classifier, their rate and
# decay. Collapse follows the decay: at paper scale the rates of all steps add up to those of the published runs.
_ZHU = {"normalized": True, "start": "default", "lr": 0.05, "weight_decay": 5e-4, "collapsing": True}
DIGITS_MLP = Experiment(
    "digits-mlp",
    run,
    {
        "smoke": Plan(grid(samples=500, width=64, depth=4, epochs=150, **_ZHU)),
        "quick": Plan(grid(samples=1000, width=128, depth=7, epochs=1600, **_ZHU)),
        "paper": Plan(grid(samples=1500, width=256, depth=7, epochs=3500, **_ZHU), seeds=3),
    },
    images=("digits",),
)
