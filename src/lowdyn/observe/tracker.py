"""Probes on a training loop that is not ours: one call per step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from lowdyn import __version__
from lowdyn.arguments import checked_count
from lowdyn.observe.processes import several, sharded, told_by_all
from lowdyn.observe.resuming import packed, settings_of, unpacked
from lowdyn.observe.schedule import Budget, Every, Schedule
from lowdyn.trajectory import Look, Probe, Record, Recorder, coordinates, plain_attributes

OnRecord = Callable[[int, Record], object]


class Tracker:
    """Look at ``model`` through ``probes`` now (step 0), and again as training goes on, at calls of :meth:`step`.

    ``every`` is a number of steps or a schedule, such as :class:`~lowdyn.observe.LogSpaced`. With a ``budget``,
    such as 0.05, a look that is due is taken only once all looks, the first and dearest included, come to at most
    that share of the training time, and left out otherwise; ``share`` is what they come to, measured, also in the
    trajectory's attributes. Processes that share a sharded model (FSDP2), or look together by LayerMetrics with
    ``distributed``, agree when to look.
    ``on_record(step, record)`` is called after each look, for a logger of one's own; ``record`` maps a variable's
    name to its dimensions and array.

    The loop stays the user's own; ``trajectory`` is what was seen so far. Parameters are read, not hooked, and
    the global random generator is not touched. Wrong arguments, and a look that fails now, raise; a look or schedule
    that fails later, for whatever reason, does not: the look is left out, ``failures`` and the trajectory's attribute
    ``failed`` say at which step and why, one warning is given, and training goes on.

    >>> from lowdyn import Spectra
    >>> tracker = Tracker(nn.Linear(3, 3), Spectra(top=1), every=2)
    >>> for _ in range(4):
    ...     tracker.step()
    >>> tracker.trajectory["step"].values.tolist()
    [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        *probes: Probe,
        every: int | Schedule = 100,
        budget: float | None = None,
        on_record: OnRecord | None = None,
    ) -> None:
        if not probes:
            raise ValueError("a Tracker needs at least one probe, such as Spectra()")
        self.every = every if hasattr(every, "due") else checked_count("every", every, at_least=1)
        self.schedule: Schedule = Every(self.every) if isinstance(self.every, int) else self.every
        self.budget = Budget(budget)
        self.on_record = on_record
        self.steps = 0
        self.failures: list[dict[str, Any]] = []
        self._model = model
        self._names = [type(probe).__name__ for probe in probes]
        self._settings = [settings_of(probe) for probe in probes]
        self._not_before = 0
        self._since: float | None = None  # up to when training time is entered
        self._until = 0.0  # when the last step ended
        began = perf_counter()
        self._looks: list[Look] = [probe.begin(model) for probe in probes]
        coordinates(self._looks)
        self._recorders = [Recorder(look.coords) for look in self._looks]
        # The first look may raise, and two probes that give the same variable are found out.
        seen = [look(0) for look in self._looks]
        names = [name for record in seen for name in record]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two probes record {', '.join(twice)}; give one of them a prefix")
        for recorder, record in zip(self._recorders, seen, strict=True):
            recorder.add(0, record)
        self._merged()  # or it raises here: dimensions of one name that differ between probes
        self._tell(seen)
        self._settle()
        self.budget.pay(perf_counter() - began)

    def step(self) -> None:
        """Count one update of the model, and record if it is time. Never raises."""
        self.steps += 1
        self._until = perf_counter()
        if self._since is None:
            self._since = self._until  # what passed between construction and training is neither
        if self.steps >= self._not_before and self.attempt("every", lambda: bool(self.schedule.due(self.steps))):
            self._synchronize()
            self._until = perf_counter()
            self._settle()
            waiting = self._waiting()
            if waiting == 0:
                self.record()
                waiting = self._waiting()
            self._not_before = self.steps + waiting

    def record(self) -> None:
        """Record now, whatever the schedule; a step already recorded is left as it is. Never raises."""
        if any(recorder.steps[-1:] == [self.steps] for recorder in self._recorders):
            return
        self._settle()
        self._synchronize()
        began = perf_counter()
        seen: list[Record | None] = []
        for name, look, recorder in zip(self._names, self._looks, self._recorders, strict=True):
            seen.append(self.attempt(name, self._recorded, look, recorder))
        self._tell(seen)
        self._synchronize()
        now = perf_counter()
        self.budget.pay(now - began)
        if self._since is not None:
            self._since = now

    @property
    def share(self) -> float:
        """Seconds spent on looking over seconds of training up to the last step; infinite before any training."""
        self._settle()
        return self.budget.share

    @property
    def trajectory(self) -> xr.Dataset:
        """What was seen so far, over ``step`` (0 = before the first update); NaN where a look failed."""
        attrs: dict[str, Any] = {"every": self.every if isinstance(self.every, int) else repr(self.every)}
        if self.budget.limit is not None:
            attrs |= {"budget": self.budget.limit, "share": self.share}
        if self.failures:
            attrs["failed"] = self.failures
        return self._merged().assign_attrs(plain_attributes({**attrs, "lowdyn": __version__}))

    def _merged(self) -> xr.Dataset:
        parts = [recorder.dataset() for recorder in self._recorders]
        return xr.merge(parts, join="outer", compat="equals", combine_attrs="drop")

    def _recorded(self, look: Look, recorder: Recorder) -> Record:
        record = look(self.steps)
        recorder.add(self.steps, record)
        return record

    def attempt(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``call`` does; where it fails, None, after writing down under ``name`` why, as of a look."""
        try:
            return call(*arguments)
        except Exception as error:
            because = f"{type(error).__name__}: {error}"
            if not self.failures:
                self._warn(f"{name} failed at step {self.steps}, because {because}; training goes on without it")
            self.failures.append({"step": self.steps, "probe": name, "because": because})
            return None

    def _warn(self, text: str) -> None:
        try:
            warnings.warn(text, stacklevel=2)
        except Warning:
            return  # made an error by a filter: it would end the training that it warns of

    def _tell(self, seen: Sequence[Record | None]) -> None:
        if self.on_record is not None:
            whole = {name: value for record in seen if record is not None for name, value in record.items()}
            self.attempt("on_record", self.on_record, self.steps, whole)

    def _settle(self) -> None:
        """Enter the training time up to the end of the last step: what follows it may not be training."""
        if self._since is not None and self._until > self._since:
            self.budget.trained += self._until - self._since
            self._since = self._until

    def _synchronize(self) -> None:
        # Work that an accelerator has not done yet is training, and looking, all the same.
        first = next(self._model.parameters(), None)
        if first is not None and first.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(first.device)

    def _waiting(self) -> int:
        """Steps until a look is affordable; on processes that look together, the most that any would wait."""
        waiting = self.budget.waiting(self.steps)
        if self.budget.limit is None or not several():
            return waiting
        if sharded(self._model) or any(getattr(look, "collective", False) for look in self._looks):
            waiting = max(told_by_all(waiting))  # one that looked alone would wait for the others
        return waiting

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as plain tensors by name, for a checkpoint of any kind (safetensors, torch.save).

        Of a model that is spread over processes (FSDP2) every process must ask; all get the whole.
        """
        self._settle()
        about = {
            "steps": self.steps,
            "not_before": self._not_before,
            "failures": self.failures,
            "accounts": self.budget.state(),
            "probes": self._names,
            "settings": self._settings,
        }
        return packed(about, self._recorders, self._looks)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`: same model, same probes; what was recorded since is dropped.

        ValueError, saying what does not fit, for the state of other probes or of a model of other layers or shapes.
        """
        probes = list(zip(self._names, self._settings, self._looks, self._recorders, strict=True))
        about, recorders, held = unpacked(state, probes)
        for look, one in zip(self._looks, held, strict=True):
            if hasattr(look, "load_state_dict"):
                look.load_state_dict(one)
        self._recorders = recorders
        self.steps, self._not_before, self.failures = about["steps"], about["not_before"], about["failures"]
        self.budget.restore(about["accounts"])
        self._since = None
