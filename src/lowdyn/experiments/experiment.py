"""What an experiment is: settings at three scales, and a function from settings to a trajectory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

SCALES = ("smoke", "quick", "paper")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The cells of an experiment at one scale, each run with ``seeds`` seeds; ``data`` instead of the experiment's."""

    cells: tuple[Settings, ...]
    seeds: int = 1
    data: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Experiment:
    """``run(**settings, generator=…)`` returns one Dataset; ``plans`` holds what to run at each scale.

    ``images`` names the data sets that will do, best first; the first that is found is given to ``run`` as
    ``images``. ``data`` likewise, for sets that go together: each choice is a tuple of names such as "mnist/test"
    (see :mod:`lowdyn.data.sets`), and the first of which all are found is given as ``data``. ``installed`` raises
    DataMissing where ``run`` would, because a package that holds weights is not installed.
    All cells and seeds come back as one Dataset with the dimensions ``cell`` and ``seed`` in front.
    """

    name: str
    run: Callable[..., xr.Dataset]
    plans: Mapping[str, Plan]
    images: tuple[str, ...] = field(default=())
    data: tuple[tuple[str, ...], ...] = field(default=())
    installed: Callable[[], object] = field(default=lambda: None)


def grid(**values: Any) -> tuple[Settings, ...]:
    """Return every combination of the values given as lists; what is no list stays the same in all.

    >>> grid(depth=[2, 3], init_scale=0.5)
    ({'depth': 2, 'init_scale': 0.5}, {'depth': 3, 'init_scale': 0.5})
    """
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    return tuple(dict(zip(values, combination, strict=True)) for combination in itertools.product(*lists))


def described(*sets: Any) -> dict[str, str]:
    """Return what a Dataset says of the data that it was measured on: ``data``, ``used``, ``sha256``, set by set.

    >>> from lowdyn.data import load_set
    >>> described(load_set("digits/train"), load_set("digits/test"))["used"]
    '1 500 of 1 797 images + 297 of 1 797 images'
    """
    names = {"data": "name", "used": "used", "sha256": "sha256"}
    return {key: " + ".join(getattr(one, name) for one in sets) for key, name in names.items()}


def combine(cells: Sequence[tuple[Settings, Sequence[xr.Dataset]]], seeds: Sequence[int]) -> xr.Dataset:
    """Stack the runs of every cell over ``seed`` and the cells over ``cell``, settings as coordinates.

    Runs of different lengths or depths are filled with NaN; :func:`each_cell` takes that off again.
    """
    stacked = [xr.concat(list(runs), dim="seed", join="outer", combine_attrs="drop_conflicts") for _, runs in cells]
    data = xr.concat(stacked, dim="cell", join="outer", combine_attrs="drop_conflicts")
    names = sorted({name for settings, _ in cells for name in settings})
    coords: dict[str, Any] = {"seed": list(seeds)}
    for name in names:
        coords[name] = ("cell", np.array([settings.get(name, np.nan) for settings, _ in cells]))
    return data.assign_coords(coords)


def each_cell(data: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Go through the cells of an experiment's Dataset as (settings, Dataset over ``seed`` …), without filling."""
    for index in range(data.sizes["cell"]):
        cell = data.isel(cell=index)
        settings = {str(name): coord.item() for name, coord in cell.coords.items() if coord.ndim == 0}
        for dim in set(cell.dims) - {"seed"}:
            cell = cell.dropna(dim, how="all", subset=[name for name, v in cell.data_vars.items() if dim in v.dims])
        yield settings, cell


def by_setting(data: xr.Dataset, name: str, **others: Any) -> dict[Any, xr.Dataset]:
    """Return the cells, as :func:`each_cell` gives them, by one setting, of those with these values of ``others``.

    ValueError where two cells have the same: by one setting alone they are not told apart.

    >>> plan = [({"depth": depth, "width": width}, [xr.Dataset({"loss": 0.1 * width})]) for depth, width in
    ...         [(2, 5), (3, 5), (3, 10)]]
    >>> {width: float(cell["loss"].mean()) for width, cell in by_setting(combine(plan, [0]), "width", depth=3).items()}
    {5: 0.5, 10: 1.0}
    """
    found: dict[Any, xr.Dataset] = {}
    for settings, cell in each_cell(data):
        if all(settings[other] == value for other, value in others.items()):
            if settings[name] in found:
                raise ValueError(f"two cells have {name} = {settings[name]}, pass the settings that they differ in")
            found[settings[name]] = cell
    return found
