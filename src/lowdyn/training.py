"""The minibatch loop, on Accelerate: devices, mixed precision and several processes by its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowdyn import __version__
from lowdyn.arguments import checked_count, checked_generator
from lowdyn.checkpoints import Checkpoints
from lowdyn.dynamics import DivergenceError
from lowdyn.observe import Tracker
from lowdyn.progress import Progress, generators_of

__all__ = ["Checkpoints", "Minibatches", "train"]

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
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train ``model`` in place for ``epochs`` passes over ``loader``; return the training curve.

    ``loader`` gives (inputs, labels). The samples of one update of Minibatches are divided over the processes; a
    DataLoader is prepared by Accelerate (``batch_size`` samples in each process); of any other iterable every
    process goes through its own. ``loss`` is a mean over the samples it is given. ``scheduler`` steps once per
    update, ``tracker`` after each, ``on_epoch`` is called with the number of epochs done. ``accelerator`` is an
    ``accelerate.Accelerator`` of one's own (mixed precision, devices, ``gradient_accumulation_steps``, DDP, FSDP2);
    by default one as configured by ``accelerate config``.

    Every update follows the mean over all its samples, each counted once: in however many processes and
    accumulated batches, however unequal, they came, and however often Accelerate repeats some to fill the last.

    With ``checkpoints``, a run that was interrupted goes on from its last complete checkpoint when the same
    program is started again, also in the middle of an epoch: on the CPU, with the same versions, threads and number
    of processes, to the bytes of the run that was not. ValueError when the order of the data cannot be repeated (a
    DataLoader that shuffles without a ``generator``), or the checkpoint is one of another run.

    The trajectory has one record per epoch at the ``step`` (update) that ended it: ``loss``, the mean over its
    samples while they were trained on, and ``accuracy`` likewise when labels are classes. Raises
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
    generators = generators_of(loader, checkpoints)
    run = Progress(model, optimizer, scheduler, tracker, accelerator, checkpoints, generators)
    left_over = _left_over(loader, accelerator)
    if isinstance(loader, torch.utils.data.DataLoader):
        loader = accelerator.prepare_data_loader(loader)
    forward = {name: model.__dict__[name] for name in _PATCHED if name in model.__dict__}
    trained, prepared = accelerator.prepare(model, optimizer)
    try:
        run.resume(epochs)
        for epoch in range(run.epochs, epochs):
            model.train()
            for window in _windows(run, loader, left_over):
                _update(run, trained, prepared, window, loss)
                if tracker is not None:
                    tracker.step()
                if checkpoints is not None and checkpoints.due(run.updates):
                    run.save()
            run.close_epoch()
            if on_epoch is not None:
                on_epoch(epoch + 1)
            if checkpoints is not None and (checkpoints.every is None or epoch + 1 == epochs):
                run.save()
    finally:
        for name in _PATCHED:  # mixed precision wraps the forward of the model itself
            model.__dict__.pop(name, None)
        model.__dict__.update(forward)
    return run.curve({"epochs": epochs, "lowdyn": __version__, "torch": torch.__version__})


_PATCHED = ("forward", "_original_forward")


@dataclass(frozen=True)
class _Batch:
    """A batch of this process; only the first ``counted`` samples are its share, the others fill it up."""

    inputs: Tensor
    labels: Tensor
    counted: int


def _windows(run: Progress, loader: Iterable[tuple[Tensor, Tensor]], left_over: int | None) -> Iterator[list[_Batch]]:
    """Yield the batches of each update of the epoch that is still to come."""
    run.open_epoch()
    source = _shares(loader, run.accelerator, left_over)
    run.pass_over(source)
    while window := list(islice(source, run.accelerator.gradient_accumulation_steps)):
        yield window


def _left_over(loader: Any, accelerator: Any) -> int | None:
    """Return how many samples of the last round over the processes are this one's share; None where it is full."""
    if accelerator.num_processes == 1 or not isinstance(loader, torch.utils.data.DataLoader):
        return None
    if loader.batch_size is None or loader.drop_last or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return None
    size = loader.batch_size // (accelerator.num_processes if accelerator.split_batches else 1)
    rest = len(loader.sampler) % (size * accelerator.num_processes)  # type: ignore[arg-type] # of a map-style data set
    return min(max(rest - accelerator.process_index * size, 0), size) if rest else None


def _shares(loader: Iterable[tuple[Tensor, Tensor]], accelerator: Any, left_over: int | None) -> Iterator[_Batch]:
    """Yield what each batch holds for this process."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    for inputs, labels in loader:
        counted = len(labels)
        if processes > 1 and isinstance(loader, Minibatches):
            shares = [tensor.tensor_split(processes)[rank] for tensor in (inputs, labels)]
            counted = len(shares[1])
            inputs, labels = shares if counted else (inputs[:1], labels[:1])
        elif left_over is not None and accelerator.gradient_state.end_of_dataloader:
            counted = left_over  # Accelerate has filled the last round up with samples of the first
        yield _Batch(inputs, labels, counted)


def _update(run: Progress, trained: nn.Module, optimizer: Any, window: list[_Batch], loss: Loss) -> None:
    """Make one update from the batches of a window, and add to the sums of the epoch."""
    accelerator = run.accelerator
    (total,) = run.summed(sum(batch.counted for batch in window))
    # DDP and FSDP2 take the mean over processes, Accelerate that over accumulated batches; undone here.
    parts = accelerator.num_processes * accelerator.gradient_accumulation_steps
    value_sum = right = 0.0
    optimizer.zero_grad()
    for batch in window:
        inputs, labels = batch.inputs.to(accelerator.device), batch.labels.to(accelerator.device)
        with nullcontext() if batch is window[-1] else accelerator.no_sync(trained):
            with accelerator.autocast():
                outputs = trained(inputs)
                outputs, labels = outputs[: batch.counted], labels[: batch.counted]
                # Without samples of its own the process still takes part in what all exchange.
                value = loss(outputs, labels) if batch.counted else outputs.sum()
            accelerator.backward(value * (batch.counted * parts / total))
        if batch.counted:
            value_sum += float(value.detach()) * batch.counted
            right += _right(outputs.detach(), labels)
    value_sum, right = run.summed(value_sum, right)
    run.updates += 1
    if not math.isfinite(value_sum):
        raise DivergenceError(
            f"training diverged: the loss is not finite at step {run.updates} (epoch {run.epochs + 1}); lower the "
            f"learning rate, {optimizer.param_groups[0]['lr']:g} at that step",
            run.curve(),
        )
    optimizer.step()
    if run.scheduler is not None and not optimizer.step_was_skipped:
        run.scheduler.step()
    run.batches += len(window)
    run.sums = [old + new for old, new in zip(run.sums, (value_sum, right, total), strict=True)]


def _right(outputs: Tensor, labels: Tensor) -> float:
    """Return how many samples are classified rightly; of several labels a sample, their share."""
    if labels.is_floating_point():
        return math.nan
    return int((outputs.argmax(dim=-1) == labels).sum()) * len(labels) / labels.numel()


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lowdyn.train runs on Accelerate: pip install 'lowdyn[train]'") from error
    return Accelerator()
