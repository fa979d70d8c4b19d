"""*heads*: a backbone pretrained below 0 … 3 further layers, which are then thrown away.

Wang et al. 2023 (arXiv 2311.02960) and Li et al. 2022 (arXiv 2212.12206) pretrain on one data set and transfer to
another. Here one set of images serves for both: the first half of its classes is learnt, the second half transferred
to. A ReLU backbone of five layers, the further ones as wide; training as in *image-mlp*.
"""

from __future__ import annotations

import math

import torch
import xarray as xr
from torch import Tensor

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, grid
from lowdyn.experiments.fitting import described, fit, tensors
from lowdyn.networks import MLP, orthogonal
from lowdyn.observe import layer_metrics

BACKBONE = 5


def run(
    *,
    images: ImageSet,
    samples: int,
    width: int,
    extra: int,
    epochs: int,
    lr: float,
    generator: torch.Generator,
    shuffled: bool = False,
) -> xr.Dataset:
    """Return the training curve, and what the backbone's last features z are worth.

    ``within_between_ratio`` is D of z on the images it was pretrained on, ``transferred_ratio`` on those of the other
    classes; ``probe_accuracy`` that of a linear classifier on z, fitted to one half of the images of the other classes
    and scored on the other half. ``shuffled`` permutes the labels of those images, a negative control.
    """
    images = images.take(min(samples, len(images.labels)))
    inputs, labels = tensors(images)
    known = images.num_classes // 2
    source, target = labels < known, labels >= known
    depth = BACKBONE + extra + 1
    sizes = (inputs.shape[1], *[width] * (depth - 1), known)
    model = MLP(sizes, math.sqrt(2), start=orthogonal, generator=generator)
    curve = fit(model, inputs[source], labels[source], epochs=epochs, lr=lr, generator=generator)
    features = rf"^relu{BACKBONE}$"
    learnt = layer_metrics(model, [(inputs[source], labels[source])], known, features).isel(layer=-1, drop=True)
    others = labels[target] - known
    if shuffled:
        others = others[torch.randperm(len(others), generator=generator)]
    fitted, scored = (_every_second(inputs[target], others, first) for first in (0, 1))
    new = layer_metrics(model, [fitted], images.num_classes - known, features, probe=[scored]).isel(layer=-1, drop=True)
    return xr.Dataset(
        {
            "within_between_ratio": learnt["within_between_ratio"],
            "transferred_ratio": new["within_between_ratio"],
            "probe_accuracy": new["probe_accuracy"],
            "loss": curve["loss"],
            "accuracy": curve["accuracy"],
        },
        attrs=described(images),
    )


def _every_second(inputs: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    return inputs[first::2], labels[first::2]


_EXTRA = {"extra": [0, 1, 2, 3], "lr": 0.02}
HEADS = Experiment(
    "heads",
    run,
    {
        "smoke": Plan(grid(samples=600, width=64, epochs=30, **_EXTRA)),
        "quick": Plan(grid(samples=3000, width=128, epochs=40, **_EXTRA), seeds=2),
        "paper": Plan(grid(samples=50_000, width=1024, epochs=100, **_EXTRA), seeds=5),
    },
    images=("cifar10", "digits"),
)
