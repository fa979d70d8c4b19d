"""Claims and experiments that take no time, and the folder that they are judged in."""

import json
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from lowdyn import trajectory
from lowdyn.claims.claim import at_most
from lowdyn.experiments.experiment import SCALES, Experiment, Plan, each_cell
from lowdyn.runner import Folder, Reproduction

HALVING, FIXED = {"steps": 4, "factor": 0.5}, {"steps": 3, "factor": 1.0}


class Runs:
    """A run of an experiment that remembers its seeds; `fail` is raised by the run of that number, from 1."""

    __module__ = "lowdyn.linalg"  # whose source stands for the fake's own

    def __init__(self, fail=None):
        self.seeds, self.fail = [], fail or {}

    def __call__(self, *, steps, factor, generator, images=None):
        self.seeds.append(generator.initial_seed())
        if len(self.seeds) in self.fail:
            raise self.fail[len(self.seeds)]
        loss = np.random.default_rng(self.seeds[-1]).uniform(1, 2) * factor ** np.arange(steps)
        attrs = {"data": images.name, "used": images.used, "sha256": images.sha256} if images else {}
        return xr.Dataset({"loss": ("step", loss)}, coords={"step": np.arange(steps)}, attrs=attrs)


def experiment(run=None, name="halving", cells=(HALVING,), seeds=3, images=()):
    return Experiment(name, run or Runs(), dict.fromkeys(SCALES, Plan(cells, seeds)), images)


def check_last(datasets):
    (data,) = datasets.values()
    return [at_most("last loss", float(data["loss"].max("seed").isel(step=-1).min()), 0.5)]


def draw_lines(datasets):
    (data,) = datasets.values()
    return go.Figure([go.Scatter(y=cell["loss"].isel(seed=0).values) for _, cell in each_cell(data)])


def claim(name="C90", of=None, check=check_last, draw=draw_lines):
    texts = {"TITLE": "Halving", "CLAIM": "It halves.", "SOURCE": "A paper", "PUBLISHED": "0.5", "DEVIATION": "None."}
    texts |= {"PART": "see", "DIFFERENCE": "", "SCALE_NOTE": ""}
    of = (experiment() if of is None else of,)
    return SimpleNamespace(ID=name, **texts, EXPERIMENTS=of, check=check, draw=draw, __name__="lowdyn.files")


def raising(error):
    def fail(*_):
        raise error

    return fail


def reproduce(folder, *claims, **options):
    """Judge claims in a folder, as the command does; return their entries."""
    with Folder.open(folder) as opened:
        run = Reproduction(opened, **{"scale": "smoke", **options})
        return [run.judge(one) for one in claims]


def runs_after(folder, **changes):
    """Seeds that a second reproduction runs after `changes`."""
    run = Runs()
    options = {name: changes.pop(name) for name in ("seed", "data_dir") if name in changes}
    reproduce(folder, claim(of=experiment(run, **changes)), **options)
    return run.seeds


def read(path):
    """Strict JSON: no NaN, no infinity."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def contents(folder):
    """Every file of a folder but the lock: name -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def without_times(results):
    return [{name: value for name, value in entry.items() if name not in ("seconds", "times")} for entry in results]


def assert_whole(folder):
    """Whatever is there under its own name can be read to its end."""
    for path in folder.rglob("*.json"):
        read(path)
    for path in folder.rglob("*.nc"):
        trajectory.load(path)
