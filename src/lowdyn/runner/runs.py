"""One run of an experiment as a value: named by a key, made here, or sent to another process and made there."""

from __future__ import annotations

import functools
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from lowdyn.data import DataError, DataMissing, DataSet, load_set, set_available
from lowdyn.experiments.experiment import Settings
from lowdyn.provenance import deciding_versions, digest, machine, source_digest
from lowdyn.runner.folder import as_netcdf


@dataclass(frozen=True)
class Run:
    """A function, its settings and its seed; the names of its data sets; and what else decides the numbers."""

    experiment: str
    function: Callable[..., xr.Dataset]
    settings: Settings
    seed: int
    sets: tuple[str, ...]
    together: bool  # the sets go to ``data``, all of them; else the one to ``images``
    identity: Mapping[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """The digest of all that decides the numbers."""
        return digest({**self.identity, "settings": self.settings, "seed": self.seed})

    @property
    def place(self) -> str:
        """Where in the folder the run is kept; two experiments may have a key in common, not a place."""
        return f"{self.experiment}/runs/{self.key[:24]}.nc"

    def make(self, sets: Sequence[DataSet]) -> xr.Dataset:
        """Return the trajectory, with the ``seconds`` it took and the ``machine`` it was made on."""
        given = {"data": tuple(sets)} if self.together else {"images": sets[0]} if sets else {}
        began = time.perf_counter()
        data = self.function(**self.settings, **given, generator=torch.Generator().manual_seed(self.seed))
        return data.assign_attrs(seconds=time.perf_counter() - began, machine=json.dumps(machine()))


@dataclass(frozen=True)
class Outcome:
    """What came of a run that was sent away: the bytes of its netCDF file, or the reason why there are none."""

    place: str
    content: bytes = b""
    reason: str = ""


class MadeElsewhere(RuntimeError):
    """A run failed in another process; the text is the whole reason, as :func:`reason_of` gave it there."""


def identity(function: Callable[..., Any], sets: Sequence[DataSet]) -> dict[str, Any]:
    """Return what decides the numbers beside settings and seed: the source, the versions, the data."""
    digests = [one.sha256 for one in sets]
    return {
        "source": source_digest(function.__module__),
        "versions": deciding_versions(function.__module__),
        "data": digests[0] if len(digests) == 1 else digests or None,
    }


def reason_of(error: Exception) -> str:
    """Return why there is no result, with "error: " in front unless only data are missing."""
    if isinstance(error, DataMissing | MadeElsewhere):
        return str(error)
    kind = "" if isinstance(error, DataError | ArithmeticError) else f"{type(error).__name__}: "
    return f"error: {kind}{error}"


_alone = threading.Lock()  # runs fork the global generators and set threads: one at a time in a process


def made_for_another(run: Run, folder: Path | None, threads: int | None) -> Outcome:
    """Make a run for another process, in ``threads`` threads if given; what goes wrong is told, not raised.

    Data sets are loaded from ``folder`` if they are there, else from this machine's own LOWDYN_DATA. They, the
    sources and the versions must be those of the process that asks.
    """
    with _alone:
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            sets = [_loaded(name, _place(name, folder)) for name in run.sets]
            _check_same(run.identity, identity(run.function, sets), run.sets)
            return Outcome(run.place, as_netcdf(run.make(sets)))
        except DataMissing as missing:
            return Outcome(run.place, reason=f"on the worker {platform.node()}: {missing}")
        except Exception as error:
            return Outcome(run.place, reason=reason_of(error))


def _place(name: str, folder: Path | None) -> Path | None:
    return folder if folder is not None and set_available(name, folder) else None


@functools.lru_cache(maxsize=8)
def _loaded(name: str, folder: Path | None) -> DataSet:
    return load_set(name, folder)


def _check_same(asked: Mapping[str, Any], here: Mapping[str, Any], sets: Sequence[str]) -> None:
    """RuntimeError unless this process would compute what the one that asks wants."""
    different = []
    if here["source"] != asked["source"]:
        different.append("another source of lowdyn")
    names = sorted(here["versions"].keys() | asked["versions"].keys())
    pairs = [(name, here["versions"].get(name, "none"), asked["versions"].get(name, "none")) for name in names]
    different += [f"{name} {ours}, not {theirs}" for name, ours, theirs in pairs if ours != theirs]
    if here["data"] != asked["data"]:
        different.append(f"other data by the name of {' + '.join(sets)}")
    if different:
        raise RuntimeError(f"the worker {platform.node()} has {'; '.join(different)}: install there what is here")
