"""*spectra*: the penultimate weight of a linear network, a perceptron and a small transformer while they learn.

The lecture shows its singular values for "linear model, MLP, toy ViT, ViT-base", without settings. Here: real images,
orthogonal starts of scale 1, SGD with momentum 0.9 and no weight decay, which would move every singular value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import nn

from lowdyn.data import ImageSet
from lowdyn.experiments.experiment import Experiment, Plan, Settings, described, grid
from lowdyn.experiments.fitting import BATCH, fit, tensors
from lowdyn.networks import MLP, SmallViT, orthogonal
from lowdyn.observe import Spectra, Tracker, active_subspace
from lowdyn.observe.matrices import weight_matrices

RECORDS = 40


def run(
    *,
    images: ImageSet,
    model: str,
    samples: int,
    width: int,
    depth: int,
    epochs: int,
    lr: float,
    generator: torch.Generator,
) -> xr.Dataset:
    """Return the training curve and, of the last weight before the classifier, ``singular_values`` (record, index).

    ``record`` numbers the looks, ``record_step`` their updates. ``update_values`` (index) are the singular values of
    W(T) − W(0). ``model`` is "linear" or "MLP" of ``depth`` weights, or "ViT" of ``depth`` blocks.
    """
    images = images.take(min(samples, len(images.labels)))
    inputs, labels = tensors(images)
    network, penultimate = _built(model, images, width, depth, generator)
    updates = epochs * -(-len(labels) // BATCH)
    seen = followed(
        network,
        penultimate,
        updates,
        lambda tracker: fit(
            network, inputs, labels, epochs=epochs, lr=lr, generator=generator, weight_decay=0.0, tracker=tracker
        ),
    )
    return seen.assign_attrs(**described(images), classes=images.num_classes)


def followed(network: nn.Module, name: str, updates: int, training: Callable[[Tracker], xr.Dataset]) -> xr.Dataset:
    """Return what :func:`run` does of the weight ``name``, while ``training`` makes so many ``updates``."""
    read = weight_matrices(network, rf"^{name}$")[name]
    start = read().clone()
    tracker = Tracker(network, Spectra(rf"^{name}$", top=0, reference=updates + 1), every=max(1, updates // RECORDS))
    curve = training(tracker)
    seen = tracker.trajectory["singular_values"].isel(layer=0)
    return xr.Dataset(
        {
            "singular_values": (("record", "index"), seen.values),
            "record_step": ("record", seen["step"].values),
            "update_values": ("index", active_subspace([start, read()]).values.cpu().numpy()),
            "loss": curve["loss"],
            "accuracy": curve["accuracy"],
        },
        coords={"record": np.arange(seen.sizes["step"]), "index": np.arange(seen.sizes["index"])},
    )


def _built(model: str, images: ImageSet, width: int, depth: int, generator: torch.Generator) -> tuple[nn.Module, str]:
    """Return the network and the name of the last weight before its classifier."""
    height, across, *channels = images.images.shape[1:]
    if model == "ViT":
        shape = (height, across, channels[0] if channels else 1)
        patch = 2 if height < 16 else 4
        network = SmallViT(
            shape, images.num_classes, width=width, depth=depth, patch=patch, start=orthogonal, generator=generator
        )
        return network, f"block{depth}.contract"
    sizes = (int(np.prod(images.images.shape[1:])), *[width] * (depth - 1), images.num_classes)
    relu_layers = 0 if model == "linear" else None
    return MLP(sizes, start=orthogonal, relu_layers=relu_layers, generator=generator), f"hidden{depth - 1}"


def _cells(*, samples: int, width: int, epochs: int, vit: Settings) -> tuple[Settings, ...]:
    shared = {"samples": samples, "lr": 0.01}
    return (
        *grid(model="linear", width=width, depth=4, epochs=epochs, **shared),
        *grid(model="MLP", width=width, depth=5, epochs=epochs, **shared),
        *grid(model="ViT", **vit, **shared),
    )


SPECTRA = Experiment(
    "spectra",
    run,
    {
        "smoke": Plan(_cells(samples=500, width=64, epochs=40, vit={"width": 48, "depth": 2, "epochs": 20})),
        "quick": Plan(_cells(samples=2000, width=128, epochs=40, vit={"width": 64, "depth": 2, "epochs": 15})),
        "paper": Plan(
            _cells(samples=50_000, width=1024, epochs=100, vit={"width": 256, "depth": 6, "epochs": 100}), seeds=3
        ),
    },
    images=("cifar10", "digits"),
)
