#!/usr/bin/env python3
"""Keep the trajectories of a run at paper scale in docs/results/paper, thinned where they are above one megabyte.

    python benchmarks/evidence.py FOLDER [EXPERIMENT …]

``FOLDER`` is what ``lowdyn reproduce --scale paper --out FOLDER`` wrote; by default all experiments in it. Those that
are small enough are copied. Of the others, variables are kept in single precision where every claim that reads them
says the same to the digits it shows, and as many records as fit, with which every check comes out the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import xarray as xr

from lowdyn import trajectory
from lowdyn.claims.claim import Check, all_claims
from lowdyn.files import replace_atomically
from lowdyn.runner.folder import as_netcdf

PAPER = Path(__file__).resolve().parent.parent / "docs" / "results" / "paper"
LIMIT = 1_000_000  # bytes of a file in docs/results
STEPS = (1, 2, 4, 5, 10, 20, 25, 50, 100)

Checks = Callable[[xr.Dataset], list[Check]]


def fitted(data: xr.Dataset, checks: Checks, limit: int) -> xr.Dataset:
    """Return ``data`` thinned to at most ``limit`` bytes, so that ``checks`` of it hold or not as those of the whole.

    ValueError where no thinning does that.
    """
    whole = checks(data)
    single: list[str] = []
    for name in sorted(map(str, data.data_vars), key=lambda name: -data[name].nbytes):
        if len(as_netcdf(trajectory.thinned(data, single=single))) <= limit:
            break
        if data[name].dtype != np.float64 or not trajectory.fits_single(data[name].values):
            continue
        if _said(whole) == _said(checks(trajectory.thinned(data, single=[*single, name]))):
            single.append(name)
    for every in STEPS:
        kept = trajectory.thinned(data, every=every, single=single)
        if len(as_netcdf(kept)) <= limit and [one.holds for one in checks(kept)] == [one.holds for one in whole]:
            return kept
    raise ValueError(f"no thinning to {limit} bytes leaves the checks as they are")


def _said(checks: Iterable[Check]) -> list[tuple[str, bool | None]]:
    return [(check.sentence(), check.holds) for check in checks]


def checks_of(name: str, folder: Path) -> Checks:
    """Return the checks of every claim that reads the experiment ``name``, other trajectories taken from ``folder``."""
    claims = [claim for claim in all_claims().values() if name in [one.name for one in claim.EXPERIMENTS]]
    others = {one.name for claim in claims for one in claim.EXPERIMENTS} - {name}
    loaded = {other: trajectory.load(_place(folder, other)) for other in others}
    return lambda data: [check for claim in claims for check in claim.check({**loaded, name: data})]


def _place(folder: Path, name: str) -> Path:
    return folder / name / "trajectory.nc"


def main(folder: Path, names: list[str]) -> None:
    """Keep the named experiments, or all that ``folder`` holds."""
    for name in names or sorted(path.parent.name for path in folder.glob("*/trajectory.nc")):
        source, target = _place(folder, name), _place(PAPER, name)
        if source.stat().st_size <= LIMIT:
            replace_atomically(target, source.read_bytes())
            print(f"{name}: {source.stat().st_size} bytes, as it is")
            continue
        kept = fitted(trajectory.load(source), checks_of(name, folder), LIMIT)
        trajectory.save(kept, target)
        print(f"{name}: {source.stat().st_size} -> {target.stat().st_size} bytes, {kept.attrs.get('thinned', 'whole')}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/evidence.py FOLDER [EXPERIMENT …]")
    main(Path(sys.argv[1]), sys.argv[2:])
