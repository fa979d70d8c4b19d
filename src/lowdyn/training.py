"""The minibatch loop, on Accelerate: devices, mixed precision and several processes by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowdyn import __version__
from lowdyn.arguments import checked_count, checked_generator
from lowdyn.dynamics import DivergenceError
from lowdyn.observe import Tracker
from lowdyn.trajectory import Recorder

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Minibatches:
    """Batches of tensors held in memory, in a new order of ``generator``'s every time they are gone through.

    ``inputs`` (N, …) and ``labels`` (N,); the last batch may be smaller.

    >>> batches = Minibatches(torch.arange(5.0), torch.arange(5), 2, torch.Generator().manual_seed(0))
    >>> sorted(len(labels) for _, labels in batches)
    [1, 2, 2]
    """

    inputs: Tensor
    labels: Tensor
    batch_size: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        checked_count("batch_size", self.batch_size, at_least=1)
        checked_generator(self.generator)
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"{len(self.inputs)} inputs came with {len(self.labels)} labels")

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=self.generator)
        for chosen in torch.split(order, self.batch_size):
            yield self.inputs[chosen], self.labels[chosen]


def train(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    loss: Loss = cross_entropy,
    scheduler: Any | None = None,
    tracker: Tracker | None = None,
    accelerator: Any | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train ``model`` in place for ``epochs`` passes over ``loader``; return the training curve.

    ``loader`` gives (inputs, labels); a DataLoader is prepared by Accelerate (sharded over processes), any
    other iterable is gone through as it is. ``scheduler`` steps once per update, ``tracker`` after each
    update, ``on_epoch`` is called with the number of epochs done. ``accelerator`` is an
    ``accelerate.Accelerator`` of one's own (mixed precision, devices); by default one as configured by
    ``accelerate config``.

    The trajectory has one record per epoch at the ``step`` (update) that ended it: ``loss``, the mean over its
    batches while they were trained on, and ``accuracy`` likewise when labels are classes. Raises
    DivergenceError, with the curve so far, when the loss is no longer finite.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(64, 3, generator=generator)
    >>> y = (x[:, 0] > 0).long()
    >>> model = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> curve = train(model, Minibatches(x, y, 16, generator), optimizer=optimizer, epochs=9)
    >>> curve.sizes["step"], int(curve["step"][-1]), bool(curve["accuracy"][-1] > 0.9)
    (9, 36, True)
    """
    epochs = checked_count("epochs", epochs, at_least=1)
    if accelerator is None:
        accelerator = _accelerator()
    if isinstance(loader, torch.utils.data.DataLoader):
        loader = accelerator.prepare_data_loader(loader)
    trained, optimizer = accelerator.prepare(model, optimizer)
    recorder, updates = Recorder(), 0
    for epoch in range(epochs):
        model.train()
        totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # loss, right, samples
        for inputs, labels in loader:
            inputs, labels = inputs.to(accelerator.device), labels.to(accelerator.device)
            optimizer.zero_grad()
            with accelerator.autocast():
                outputs = trained(inputs)
                value = loss(outputs, labels)
            accelerator.backward(value)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            updates += 1
            if not bool(value.isfinite()):
                raise DivergenceError(
                    f"training diverged: the loss is not finite at step {updates} (epoch {epoch + 1}); lower the "
                    f"learning rate, {optimizer.param_groups[0]['lr']:g} at that step",
                    recorder.dataset(),
                )
            with torch.no_grad():
                right = (outputs.argmax(dim=-1) == labels).sum() if not labels.is_floating_point() else torch.nan
                totals += torch.tensor(
                    [float(value) * len(labels), float(right), len(labels)], dtype=torch.float64, device=totals.device
                )
            if tracker is not None:
                tracker.step()
        totals = accelerator.reduce(totals)
        if totals[2] == 0:
            raise ValueError(f"the loader gave no batch in epoch {epoch + 1}; pass one that can be gone through again")
        mean_loss, accuracy = (totals[:2] / totals[2]).tolist()
        recorder.add(updates, {"loss": ((), mean_loss), "accuracy": ((), accuracy)})
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return recorder.dataset({"epochs": epochs, "lowdyn": __version__, "torch": torch.__version__})


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lowdyn.train runs on Accelerate: pip install 'lowdyn[train]'") from error
    return Accelerator()
