"""What a training step costs: floating-point operations, peak memory, seconds; several models in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lowdyn.arguments import checked_count

Loss = Callable[[nn.Module], Tensor]
"""The scalar loss of a model on one batch: ``lambda model: cross_entropy(model(inputs), labels)``."""


@dataclass(frozen=True)
class StepCost:
    """One training step with Adam: forward, backward, update.

    ``flops`` are those of forward and backward as torch's FlopCounterMode counts them (a multiply-add is two; an
    SVD counts as none). ``peak_bytes`` is the most that is alive at once: parameters, gradients, Adam's moments
    and every tensor that the step makes, but not the batch. ``seconds`` is a median.
    """

    flops: int
    peak_bytes: int
    seconds: float


def step_costs(models: Mapping[str, nn.Module], loss: Loss, *, repeats: int = 7) -> dict[str, StepCost]:
    """Measure one training step of each model by the loss that ``loss(model)`` returns, side by side.

    Steps of different models are timed in turn, so that a machine that is busy for a while is so for all. Each
    model is copied first and the global random generators are put back, so nothing is changed by measuring.
    TypeError unless the loss is a scalar tensor that depends on a parameter which learns.

    >>> costs = step_costs({"small": nn.Linear(4, 4)}, lambda model: model(torch.ones(8, 4)).square().mean(), repeats=1)
    >>> costs["small"].flops  # 2 · 8 · 4 · 4 forward, as many for the gradient of the weight
    512
    """
    checked_count("repeats", repeats, at_least=1)
    with torch.random.fork_rng(devices=_cuda_devices(models.values())):
        steps = {name: _Step(copy.deepcopy(model), loss) for name, model in models.items()}
        counted = {name: (step.flops(), step.peak_bytes()) for name, step in steps.items()}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(repeats):
            for name, step in steps.items():
                began = time.perf_counter()
                step.run()
                seconds[name].append(time.perf_counter() - began)
    return {name: StepCost(*counted[name], statistics.median(seconds[name])) for name in models}


class _Step:
    """A model, its loss and its Adam, after the first step, which makes Adam's moments."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        value = loss(model)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise TypeError(f"loss must return a scalar tensor that depends on the model's parameters, got {value!r}")
        self.adam = torch.optim.Adam(learning)
        self.run()

    def run(self) -> float:
        self.adam.zero_grad()
        value = self.loss(self.model)
        torch.autograd.backward(value)
        self.adam.step()
        return value.item()  # waits for a device that computes on its own

    def flops(self) -> int:
        self.adam.zero_grad()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(self.loss(self.model))
        return int(counter.get_total_flops())

    def peak_bytes(self) -> int:
        self.adam.zero_grad()
        held = [*self.model.parameters(), *self.model.buffers(), *tree_leaves(list(self.adam.state.values()))]
        with _LiveBytes(one for one in held if isinstance(one, Tensor)) as live:
            self.run()
        return live.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations bring to life, over those ``held`` from the start.

    Watched from within torch, not by the size of the process: the allocator keeps what was freed. A storage that
    an operation is given and that was not seen before, such as the batch, is the caller's and counts as none.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: WeakKeyDictionary[UntypedStorage, None] = WeakKeyDictionary()
        self._count(held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for storage in _storages(tree_leaves((args, kwargs))):
            self._known.setdefault(storage)
        result = func(*args, **kwargs)
        self._count(tree_leaves(result))
        return result

    def _count(self, values: Iterable[Any]) -> None:
        for storage in _storages(values):
            if storage not in self._known:
                self._known[storage] = None
                size = storage.nbytes()
                self.now += size
                finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


def _storages(values: Iterable[Any]) -> Iterable[UntypedStorage]:
    return (value.untyped_storage() for value in values if isinstance(value, Tensor))


def _cuda_devices(models: Iterable[nn.Module]) -> list[int]:
    return sorted({p.device.index for model in models for p in model.parameters() if p.device.type == "cuda"})
