"""Where a training run stands: counted as it goes on, saved, and found again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn.checkpoints import Checkpoints, spread
from lowdyn.observe import Tracker
from lowdyn.observe.draws import generators_in
from lowdyn.trajectory import Recorder


@runtime_checkable
class Stateful(Protocol):
    """What can say its state and take it back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: numbers, text, tensors, arrays, lists and dicts of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take back a state."""
        ...


@dataclass
class Progress:
    """A run with its counters; ``sums`` of the present epoch are loss, right and samples, over all processes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any | None
    tracker: Tracker | None
    accelerator: Any
    checkpoints: Checkpoints | None
    generators: list[torch.Generator]
    epochs: int = 0  # completed
    batches: int = 0  # done in the present epoch, by each process
    updates: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    records: list[tuple[int, float, float]] = field(default_factory=list)
    _saved: int | None = None  # updates at the last checkpoint
    _began: list[Tensor] = field(default_factory=list)  # states of the generators at the start of the present epoch
    _reached: list[Tensor] = field(default_factory=list)  # and at the checkpoint that was taken up

    def open_epoch(self) -> None:
        """Remember where the generators are before the epoch draws its order."""
        self._began = [generator.get_state() for generator in self.generators]

    def pass_over(self, batches: Iterator[Any]) -> None:
        """Fetch and drop the batches that were done before a resume: what is drawn with them is drawn again.

        The model then goes on with the generators as they were at the checkpoint.
        """
        for _ in islice(batches, self.batches):
            pass
        for generator, state in zip(self.generators, self._reached, strict=False):
            generator.set_state(state)
        self._reached = []

    def close_epoch(self) -> None:
        """Record the epoch that ends here."""
        value, right, samples = self.sums
        if samples == 0:
            raise ValueError(
                f"the loader gave no batch in epoch {self.epochs + 1}; pass one that can be gone through again"
            )
        self.records.append((self.updates, value / samples, right / samples))
        self.epochs, self.batches, self.sums = self.epochs + 1, 0, [0.0, 0.0, 0.0]

    def curve(self, attrs: dict[str, Any] | None = None) -> xr.Dataset:
        """Return the training curve so far."""
        recorder = Recorder()
        for updates, value, accuracy in self.records:
            recorder.add(updates, {"loss": ((), value), "accuracy": ((), accuracy)})
        return recorder.dataset(attrs)

    def summed(self, *values: float) -> list[float]:
        """Return each of ``values`` summed over the processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor).tolist()

    def save(self) -> None:
        """Write a checkpoint, unless the last one is of this update. Every process takes part, one writes."""
        if self.checkpoints is None or self._saved == self.updates:
            return
        if self.batches == 0:
            self.open_epoch()  # what came between two epochs may have drawn as well
        reached = [generator.get_state() for generator in self.generators]
        state = {
            "epochs": self.epochs,
            "batches": self.batches,
            "updates": self.updates,
            "sums": self.sums,
            "records": self.records,
            "processes": self.accelerator.num_processes,
            "began": [self._of_all(one) for one in self._began],
            "reached": [self._of_all(one) for one in reached],
            **{name: part.state_dict() for name, part in self._parts()},
        }
        writes = self.accelerator.is_main_process
        self.checkpoints.write(self.updates, self.model.state_dict(), state, writes=writes)
        self._saved = self.updates

    def resume(self, epochs: int) -> None:
        """Take up the last complete checkpoint, if there is one."""
        if self.checkpoints is None:
            return
        step = self._agreed(self.checkpoints.last() if self.accelerator.is_main_process else None)
        if step is None:
            return
        if self.accelerator.is_main_process:
            self.checkpoints.prune(step)  # an interruption may have come before the last one was done
        model, state = self.checkpoints.read(step, self.model.state_dict())
        where = f"the checkpoint of step {step} in {self.checkpoints.folder}"
        if state["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{where} is of {state['processes']} processes, this run has {self.accelerator.num_processes}; "
                "start it with as many, or in another folder"
            )
        if state["epochs"] > epochs:
            raise ValueError(f"{where} has completed {state['epochs']} epochs, epochs={epochs} are fewer")
        here = {name for name, _ in self._parts()} | {f"{len(self.generators)} generators"}
        there = {"optimizer", "scheduler", "tracker", "scaler"} & state.keys() | {f"{len(state['began'])} generators"}
        if here != there:
            raise ValueError(
                f"{where} has {', '.join(sorted(there - here)) or 'nothing'} that this run lacks, "
                f"and lacks {', '.join(sorted(here - there)) or 'nothing'} that it has"
            )
        try:
            self.model.load_state_dict(model)
            state["optimizer"]["state"] = self._spread_moments(state["optimizer"]["state"])
            for name, part in self._parts():
                part.load_state_dict(state[name])
        except (ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where} is of another run: {reason}") from error
        rank = self.accelerator.process_index
        # Copies: torch's set_state reads from the start of the storage, whatever view it is given.
        for generator, one in zip(self.generators, state["began"], strict=True):
            generator.set_state(one[rank].clone())
        self._reached = [one[rank].clone() for one in state["reached"]]
        self.epochs, self.batches, self.updates = state["epochs"], state["batches"], state["updates"]
        self.sums, self.records, self._saved = state["sums"], state["records"], step

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Yield all parts beside the model that say their state, by name."""
        yield "optimizer", self.optimizer
        if self.scheduler is not None:
            yield "scheduler", self.scheduler
        if isinstance(self.tracker, Stateful):
            yield "tracker", self.tracker
        if self.accelerator.scaler is not None:
            yield "scaler", self.accelerator.scaler

    def _of_all(self, state: Tensor) -> Tensor:
        """Return the states (process, bytes) of a generator on every process."""
        return self.accelerator.gather(state[None].to(self.accelerator.device)).cpu()

    def _agreed(self, step: int | None) -> int | None:
        """Return what the main process found, on every process."""
        (agreed,) = self.summed(-1.0 if step is None and self.accelerator.is_main_process else float(step or 0))
        return None if agreed < 0 else int(agreed)

    def _spread_moments(self, states: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Return an optimizer's state with every tensor of a parameter's shape laid out as the parameter is."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {
            index: {
                name: spread(value, parameters[index])
                if isinstance(value, Tensor) and value.shape == parameters[index].shape
                else value
                for name, value in state.items()
            }
            for index, state in states.items()
        }


def generators_of(loader: Any, checkpoints: Checkpoints | None) -> list[torch.Generator]:
    """Return the generators that a run draws from, each once: those of ``loader``'s order and the ones named.

    None without checkpoints. ValueError for a DataLoader that shuffles by torch's global generator: its order could
    not be drawn again.
    """
    if checkpoints is None:
        return []
    holders = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    holders.append(getattr(holders[-1], "sampler", None))
    samplers = [one for one in holders if isinstance(one, torch.utils.data.Sampler)]
    if any(getattr(one, "generator", False) is None for one in samplers):
        raise ValueError(
            "this DataLoader draws from torch's global generator, so that a resumed run could not repeat its order; "
            "pass it, or its sampler, generator=torch.Generator().manual_seed(seed)"
        )
    return list({id(one): one for one in (*generators_in(loader), *checkpoints.generators)}.values())
