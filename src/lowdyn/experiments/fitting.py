"""How the experiments on images train a network: one rule, said once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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
    batch: int = BATCH,
) -> xr.Dataset:
    """Train ``model`` in batches, at a rate that falls from ``lr`` as a cosine to 0; return the training curve.

    ``rule`` is "sgd", with momentum 0.9, or "adam", both with coupled ``weight_decay``. ``loss`` is "cross entropy", or
    "squared error" to one-hot labels, summed over classes.
    """
    batches = Minibatches(inputs, labels, batch, generator)
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


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Let this thread count numbers too small to be normal as zero; torch's others that run already go on as they were.

    Where gradients become zero or nearly so, those of a dead ReLU's weights or of images learned by heart, Adam's
    moments decay to such numbers and stay there, and with them a processor takes many times as long. In an update they
    are nothing: below 1e-30 where eps is 1e-8. Where the processor cannot do so, nothing happens.
    """
    already = float(torch.tensor(torch.finfo(torch.float32).tiny) / 2) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return ‖output − one-hot label‖², the mean over samples."""
    return mse_loss(outputs, one_hot(labels, outputs.shape[1]).to(outputs), reduction="sum") / len(labels)


def tensors(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return rows of features (samples, width) and labels (samples,)."""
    return torch.from_numpy(images.features()), torch.from_numpy(images.labels)


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of ``inputs`` whose largest output is that of their label; ``model`` is left evaluating."""
    model.eval()
    guesses = torch.cat([model(part).argmax(dim=1) for part in torch.split(inputs, 250)])
    return float((guesses == labels).to(torch.float64).mean())
