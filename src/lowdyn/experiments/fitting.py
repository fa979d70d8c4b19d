"""How the experiments on images train a network: one rule, said once."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from lowdyn.data import ImageSet
from lowdyn.observe import Tracker
from lowdyn.training import Minibatches, train

BATCH = 128


def fit(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    generator: torch.Generator,
    rule: str = "sgd",
    weight_decay: float = 1e-4,
    loss: str = "cross entropy",
    tracker: Tracker | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train ``model`` in batches of 128, at a rate that falls from ``lr`` as a cosine to 0; return the training curve.

    ``rule`` is "sgd", with momentum 0.9, or "adam", both with coupled ``weight_decay``. ``loss`` is "cross entropy", or
    "squared error" to one-hot labels, summed over classes.
    """
    batches = Minibatches(inputs, labels, BATCH, generator)
    optimizer: torch.optim.Optimizer
    if rule == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    return train(
        model,
        batches,
        optimizer=optimizer,
        epochs=epochs,
        loss=cross_entropy if loss == "cross entropy" else squared_error,
        scheduler=scheduler,
        tracker=tracker,
        on_epoch=on_epoch,
    )


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return ‖output − one-hot label‖², the mean over samples."""
    return mse_loss(outputs, one_hot(labels, outputs.shape[1]).to(outputs), reduction="sum") / len(labels)


def tensors(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return rows of features (samples, width) and labels (samples,)."""
    return torch.from_numpy(images.features()), torch.from_numpy(images.labels)


def described(images: ImageSet) -> dict[str, str]:
    """Return what a Dataset says of the images it was measured on."""
    names = json.dumps(images.class_names)
    return {"data": images.name, "used": images.used, "sha256": images.sha256, "class_names": names}
