"""Labelled records over steps: collected, saved as one netCDF file, loaded again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from lowdyn.files import replace_atomically

Record = Mapping[str, tuple[tuple[str, ...], Any]]
"""One look at a model: variable name -> (dimensions, array), without the step."""


class Probe(Protocol):
    """What to look at. ``begin`` may keep a reference; what it returns is called at every recorded step."""

    def begin(self, model: Any) -> Look:
        """Start looking at ``model``; the returned object is called with the step."""
        ...


class Look(Protocol):
    """A probe at work on one model."""

    @property
    def coords(self) -> Mapping[str, Any]:
        """Coordinates of the record's dimensions."""
        ...

    def __call__(self, step: int) -> Record:
        """Return what is seen after ``step`` updates."""
        ...


def coordinates(looks: Sequence[Look]) -> dict[str, Any]:
    """Return the coordinates of several looks together; ValueError where two mean different things by one name."""
    coords: dict[str, Any] = {}
    for look in looks:
        for name, values in look.coords.items():
            if name in coords and list(coords[name]) != list(values):
                raise ValueError(
                    f"two probes give {name!r} different values; let them look at the same layers, or apart"
                )
            coords[name] = values
    return coords


def observations(looks: Sequence[Look], step: int) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Return what several looks see; ValueError where two give the same variable (probes take a ``prefix``)."""
    seen: dict[str, tuple[tuple[str, ...], Any]] = {}
    for look in looks:
        record = look(step)
        twice = sorted(seen.keys() & record.keys())
        if twice:
            raise ValueError(f"two probes record {', '.join(twice)}; give one of them a prefix")
        seen.update(record)
    return seen


class Recorder:
    """Collects records step by step and stacks them into one ``xarray.Dataset`` over ``step``.

    >>> recorder = Recorder()
    >>> recorder.add(0, {"loss": ((), 1.0)})
    >>> recorder.add(5, {"loss": ((), 0.5)})
    >>> recorder.dataset()["loss"].sel(step=5).item()
    0.5
    """

    def __init__(self, coords: Mapping[str, Any] | None = None) -> None:
        self.steps: list[int] = []
        self._coords = dict(coords or {})
        self._values: dict[str, list[Any]] = {}
        self._dims: dict[str, tuple[str, ...]] = {}

    def add(self, step: int, record: Record) -> None:
        """Append one record; ``step`` must exceed the last, and every record must hold the same variables.

        ValueError, and nothing is appended, for other variables, dimensions or shapes than in earlier records, for what
        are no numbers, and for a first record whose sizes do not fit each other or the coordinates.
        """
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"step {step} does not follow step {self.steps[-1]}; records must be in order")
        if self.steps and record.keys() != self._values.keys():
            raise ValueError(f"this record holds {sorted(record)}, earlier ones {sorted(self._values)}")
        copies = {name: (tuple(dims), np.array(value)) for name, (dims, value) in record.items()}  # the model moves on
        for name, (dims, value) in copies.items():
            if value.dtype.kind not in "biufc":
                raise ValueError(f"{name!r} holds {value.dtype}; a record holds numbers")
            if self.steps and (dims, value.shape) != self.layout(name):
                earlier = "{} {}".format(*self.layout(name))
                raise ValueError(f"{name!r} is {dims} {value.shape} in this record, {earlier} in earlier ones")
        if not self.steps:
            xr.Dataset(copies, coords=self._coords)  # says what does not fit
        self.steps.append(int(step))
        for name, (dims, value) in copies.items():
            self._dims[name] = ("step", *dims)
            self._values.setdefault(name, []).append(value)

    @property
    def names(self) -> list[str]:
        """The variables recorded."""
        return list(self._values)

    def layout(self, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return dimensions and shape of a variable in every record."""
        return self._dims[name][1:], self._values[name][0].shape

    def dataset(self, attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
        """Return all records so far as a Dataset; ``attrs`` values that are not plain become JSON text."""
        variables = {name: (self._dims[name], np.stack(values)) for name, values in self._values.items()}
        coords = {"step": np.asarray(self.steps, dtype=np.int64), **self._coords}
        return xr.Dataset(variables, coords=coords, attrs=plain_attributes(attrs or {}))


def plain_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``attrs`` with every value that netCDF cannot hold written as JSON text.

    >>> plain_attributes({"lr": 0.1, "sizes": (2, 3)})
    {'lr': 0.1, 'sizes': '[2, 3]'}
    """
    return {name: _plain(value) for name, value in attrs.items() if value is not None}


def _plain(value: Any) -> str | int | float:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return str(value)  # subclasses, such as torch's version, are not known to netCDF
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value)


def save(trajectory: xr.Dataset, path: str | Path) -> Path:
    """Write ``trajectory`` as one netCDF file, replacing it atomically; returns the path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(xr.Dataset({"loss": ("step", [1.0, 0.5])}), folder + "/run.nc")
    ...     load(path)["loss"].values.tolist()
    [1.0, 0.5]
    """
    path = Path(path)
    replace_atomically(path, bytes(trajectory.to_netcdf(engine="h5netcdf")))
    return path


def thinned(trajectory: xr.Dataset, *, every: int = 1, single: Collection[str] = ()) -> xr.Dataset:
    """Return a trajectory to be kept: every ``every``-th record over ``step`` and the last, compressed when saved.

    Variables named in ``single`` are rounded to single precision; all others keep their digits. An attribute
    ``thinned`` says what was taken off, after what it said before. Of runs that ended at different steps only the
    longest surely keeps its end. ValueError for ``every`` below 1, for names that are not there, and for variables
    that are to be rounded and do not fit (:func:`fits_single`).

    >>> run = xr.Dataset({"loss": ("step", [8.0, 4.0, 2.0, 1.0])}, coords={"step": [0, 10, 20, 30]})
    >>> thinned(run, every=2)["step"].values.tolist()
    [0, 20, 30]
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if unknown := sorted(set(single) - {str(name) for name in trajectory.data_vars}):
        raise ValueError(f"no variable {', '.join(unknown)}: there are {', '.join(map(str, trajectory.data_vars))}")
    if outside := sorted(name for name in single if not fits_single(trajectory[name].values)):
        raise ValueError(f"{', '.join(outside)}: too large or too small for single precision; leave out of single")
    said = [str(trajectory.attrs["thinned"])] if "thinned" in trajectory.attrs else []
    said += [f"{', '.join(sorted(single))} in single precision"] if single else []
    kept = trajectory.drop_encoding()  # one of a file would bring its own precision back
    if every > 1 and (count := kept.sizes.get("step", 0)):
        places = sorted({*range(0, count, every), count - 1})
        kept = kept.isel(step=places)
        said.append(f"{len(places)} of {count} records")
    kept = kept.assign({name: kept[name].astype(np.float32) for name in single})
    for variable in kept.data_vars.values():
        if variable.ndim:
            variable.encoding = {"zlib": True, "complevel": 9, "shuffle": True}
    return kept.assign_attrs(thinned="; ".join(said)) if said else kept


def fits_single(values: Any) -> bool:
    """Return whether rounding to single precision leaves all ``values`` their 24 bits: none too large or too small.

    >>> fits_single([0.1, np.nan, np.inf]), fits_single([1e60]), fits_single([1e-60])
    (True, False, False)
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(values).astype(np.float32)
    return bool(np.isclose(rounded, values, rtol=2.0**-24, atol=0, equal_nan=True).all())


def load(path: str | Path) -> xr.Dataset:
    """Read a trajectory into memory; ValueError naming the file when it is not a complete netCDF file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no trajectory at {path}")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            return file.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a complete netCDF trajectory: {error}") from error
