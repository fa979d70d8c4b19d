"""*heads*: a backbone pretrained below 0 … 3 further layers, which are then thrown away.

Wang et al. 2023 (arXiv 2311.02960) and Li et al. 2022 (arXiv 2212.12206) pretrain on one data set and transfer to
another. Here one set of images serves for both: the first half of its classes is learnt, the second half transferred
to. A backbone of five normalized ReLU layers, the further ones alike; network and training are those of *image-mlp*.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, described, grid
from lowdyn.experiments.fitting import fit, tensors
from lowdyn.experiments.frozen_features import probe_accuracy, within_between_ratio
from lowdyn.experiments.normalized import normalized_mlp
from lowdyn.networks import MLP, orthogonal
from lowdyn.observe import layer_features

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

    ``within_between_ratio`` is D of z on the ``samples`` images it was pretrained on, ``transferred_ratio`` on those of
    the other classes, of which all count; ``probe_accuracy`` that of a linear classifier on z, fitted to one half of
    the images of the other classes and scored on the other half. ``shuffled`` permutes the labels of those images, a
    negative control.
    """
    known = images.num_classes // 2
    inputs, labels = tensors(images)
    source, target = torch.nonzero(labels < known)[:samples, 0], torch.nonzero(labels >= known)[:, 0]
    sizes = (inputs.shape[1], *[width] * (BACKBONE + extra), known)
    model = normalized_mlp(sizes, 0.1, start=orthogonal, bias=False, generator=generator)
    learnt = inputs[source], labels[source]
    curve = fit(model, *learnt, epochs=epochs, lr=lr, generator=generator, loss="squared error")
    others, new = labels[target] - known, images.num_classes - known
    if shuffled:
        others = others[torch.randperm(len(others), generator=generator)]
    features = _backbone(model, inputs[target])
    fitted, scored = ((features[first::2], others[first::2]) for first in (0, 1))
    return xr.Dataset(
        {
            "within_between_ratio": within_between_ratio(_backbone(model, learnt[0]), learnt[1], known),
            "transferred_ratio": within_between_ratio(features, others, new),
            "probe_accuracy": probe_accuracy(*fitted, new, scored=scored),
            "loss": curve["loss"],
            "accuracy": curve["accuracy"],
        },
        attrs=described(images),
    )


def _backbone(model: MLP, inputs: Tensor) -> Tensor:
    return layer_features(model, inputs, f"^relu{BACKBONE}$")[f"relu{BACKBONE}"]


_EXTRA = {"extra": [0, 1, 2, 3], "lr": 1e-3}
HEADS = Experiment(
    "heads",
    run,
    {
        "smoke": Plan(grid(samples=300, width=64, epochs=60, **_EXTRA)),
        "quick": Plan(grid(samples=1500, width=128, epochs=40, **_EXTRA), seeds=3),
        "paper": Plan(grid(samples=25_000, width=1024, epochs=100, **_EXTRA), seeds=5),
    },
    images=("cifar10", "digits"),
)
