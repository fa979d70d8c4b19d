"""Claims on runs at smoke scale, each run once in a process, and verdicts on results that are changed."""

import inspect
from functools import cache

import numpy as np
import pytest
import torch

from lowdyn.claims.claim import all_claims
from lowdyn.data import DataMissing, RatingSet, load_images, load_set
from lowdyn.experiments.experiment import combine

CLAIMS = all_claims()
# These networks take seconds at smoke scale; with these settings a fraction of one.
SMALL = {
    "C1": {"samples": 1000, "width": 64, "depth": 6, "epochs": 60},
    "C2": {"samples": 300, "width": 32, "epochs": 20},
    "C23": {"samples": 300, "width": 32, "epochs": 40},
    "C24": {"samples": 300, "width": 32, "epochs": 10},
    "C14": {"samples": 256, "width": 48, "epochs": 3},
    "C15": {"pretrained": 64, "pretraining_steps": 4, "adapted": 40, "steps": 2, "tested": 40},
}


def smoke(name, seed=0, cells=None, **controls):
    """Datasets of a claim at smoke scale, of its first `cells` cells, with settings that may break it."""
    return run_once(name, seed, cells, tuple(controls.items()))


@cache
def run_once(name, seed, cells, controls):
    datasets, taken = {}, set()
    for experiment in CLAIMS[name].EXPERIMENTS:
        known = inspect.signature(experiment.run).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        breaking = {key: value for key, value in controls if key in known or open_ended}
        taken |= breaking.keys()
        given = data_of(experiment)
        runs = []
        for cell in experiment.plans["smoke"].cells[:cells]:
            small = {key: value for key, value in SMALL.get(name, {}).items() if key in known or open_ended}
            settings = {**cell, **small, **breaking}
            generator = torch.Generator().manual_seed(seed)
            runs.append((settings, [experiment.run(**settings, **given, generator=generator)]))
        datasets[experiment.name] = combine(runs, [seed])
    assert taken == dict(controls).keys(), f"no experiment of {name} knows {dict(controls).keys() - taken}"
    return datasets


@cache
def some_ratings():
    """In the place of MovieLens-100K: tastes of rank 2 with noise, frequent users and films seen more often."""
    generator = np.random.default_rng(0)
    users, films = generator.normal(size=(150, 2)), generator.normal(size=(200, 2))
    often = np.outer(np.linspace(1, 0.2, 150), np.linspace(1, 0.2, 200))
    rows, columns = np.nonzero(generator.random(often.shape) < often)
    values = 3.5 + 0.5 * (users[rows] * films[columns]).sum(axis=1) + 0.8 * generator.normal(size=len(rows))
    order = generator.permutation(len(rows))
    rows, columns = (side[order].astype(np.int32) for side in (rows, columns))
    return RatingSet("some", "all", rows, columns, np.clip(values[order].round(), 1, 5), often.shape, len(rows))


def data_of(experiment):
    """The last of an experiment's choices of data, which needs no data folder if any does; made-up ratings."""
    if experiment.name == "ratings":
        return {"data": (some_ratings(),)}
    try:
        if experiment.data:
            return {"data": tuple(load_set(name) for name in experiment.data[-1])}
        return {"images": load_images(experiment.images[-1])} if experiment.images else {}
    except DataMissing as missing:
        pytest.skip(str(missing))


def judged(name, datasets):
    """Whether each judged check holds, in order."""
    return [check.holds for check in CLAIMS[name].check(datasets) if check.holds is not None]


def changed(datasets, **variables):
    """The same datasets with some variables replaced by functions of them."""
    return {
        name: data.assign(
            {variable: change(data[variable]) for variable, change in variables.items() if variable in data}
        )
        for name, data in datasets.items()
    }
