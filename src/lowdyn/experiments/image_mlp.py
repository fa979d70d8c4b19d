"""*image-mlp*: a ten-layer ReLU perceptron learns to classify real images.

The lecture and Wang et al. 2023 (arXiv 2311.02960) train width 1024 on CIFAR-10. Here: orthogonal start of gain √2
(which keeps the size of ReLU features), SGD with momentum 0.9, decay 1e-4, rate 0.02 falling as a cosine to 0,
batches of 128, cross entropy; CIFAR-10 if it is found, else scikit-learn's digits.
"""

from __future__ import annotations

import json
import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.starts import STARTS
from lowdyn.networks import MLP
from lowdyn.observe import layer_metrics
from lowdyn.observe.features import layer_features
from lowdyn.training import Minibatches, train

DRAWN = 600  # samples whose features are kept for the picture


def run(
    *,
    images: ImageSet,
    samples: int,
    width: int,
    depth: int,
    epochs: int,
    lr: float,
    generator: torch.Generator,
    start: str = "orthogonal",
    gain: float = math.sqrt(2),
    shuffled: bool = False,
) -> xr.Dataset:
    """Return the training curve, metrics of the features z^0 … z^(L−1) on the training images, and 2-D pictures.

    ``embedding`` (layer, sample, axis) are the first two principal components of each layer's features, scaled
    to unit root mean square; ``label`` (sample) their classes. ``start`` is "orthogonal", "normal", "uniform" or
    torch's "default", scaled by ``gain``. ``shuffled`` measures by permuted labels, a negative control.
    """
    images = images.take(min(samples, len(images.labels)))
    inputs, labels = torch.from_numpy(images.features()), torch.from_numpy(images.labels)
    sizes = (inputs.shape[1], *[width] * (depth - 1), images.num_classes)
    chosen = None if start == "default" else STARTS[start]
    model = MLP(sizes, gain, start=chosen, generator=generator)
    batches = Minibatches(inputs, labels, 128, generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    curve = train(model, batches, optimizer=optimizer, epochs=epochs, scheduler=scheduler)
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    metrics = layer_metrics(model, [(inputs, labels)], images.num_classes, r"^relu\d+$")
    features = layer_features(model, inputs[:DRAWN], r"^relu\d+$")
    metrics = metrics.assign_coords(layer=range(depth)).assign(
        embedding=(("layer", "sample", "axis"), np.stack([_plane(one) for one in features.values()])),
        label=("sample", labels[:DRAWN].numpy()),
        loss=curve["loss"],
        accuracy=curve["accuracy"],
    )
    return metrics.assign_attrs(
        data=images.name, used=images.used, sha256=images.sha256, class_names=json.dumps(images.class_names)
    )


def _plane(features: Tensor) -> np.ndarray:
    """First two principal components, of unit root mean square."""
    centred = features.to(torch.float64) - features.to(torch.float64).mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = left[:, :2] * values[:2]
    return np.asarray((plane / plane.square().mean().sqrt()).numpy())


IMAGE_MLP = Experiment(
    "image-mlp",
    run,
    {
        "smoke": Plan(grid(samples=1000, width=128, depth=10, epochs=100, lr=0.02)),
        "quick": Plan(grid(samples=5000, width=256, depth=10, epochs=100, lr=0.02)),
        "paper": Plan(grid(samples=50_000, width=1024, depth=10, epochs=100, lr=0.02), seeds=3),
    },
    images=("cifar10", "digits"),
)
