"""Probes on a training loop that is not ours: one call per step."""

from __future__ import annotations

import xarray as xr
from torch import nn

from lowdyn import __version__
from lowdyn.arguments import checked_count
from lowdyn.trajectory import Probe, Recorder, coordinates, observations


class Tracker:
    """Look at ``model`` through ``probes`` now (step 0), and again every ``every`` calls of :meth:`step`.

    The loop stays the user's own; ``trajectory`` is what was seen so far. Parameters are read, not hooked, and
    the global random generator is not touched.

    >>> from lowdyn import Spectra
    >>> tracker = Tracker(nn.Linear(3, 3), Spectra(top=1), every=2)
    >>> for _ in range(4):
    ...     tracker.step()
    >>> tracker.trajectory["step"].values.tolist()
    [0, 2, 4]
    """

    def __init__(self, model: nn.Module, *probes: Probe, every: int = 100) -> None:
        if not probes:
            raise ValueError("a Tracker needs at least one probe, such as Spectra()")
        self.every = checked_count("every", every, at_least=1)
        self.steps = 0
        self._looks = [probe.begin(model) for probe in probes]
        self._recorder = Recorder(coordinates(self._looks))
        self.record()

    def step(self) -> None:
        """Count one update of the model, and record if it is time."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.record()

    def record(self) -> None:
        """Record now, whatever the schedule; a step already recorded is left as it is."""
        if self._recorder.steps[-1:] != [self.steps]:
            self._recorder.add(self.steps, observations(self._looks, self.steps))

    @property
    def trajectory(self) -> xr.Dataset:
        """What was seen so far, over ``step`` (0 = before the first update)."""
        return self._recorder.dataset({"every": self.every, "lowdyn": __version__})
