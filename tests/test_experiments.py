"""Experiments: their plans, and how runs become one Dataset and come apart again."""

import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest
import xarray as xr

import lowdyn.experiments
from lowdyn import trajectory
from lowdyn.data import IMAGE_SETS
from lowdyn.experiments import near_orthonormal, orthonormal
from lowdyn.experiments.collapse import train_and_measure
from lowdyn.experiments.experiment import SCALES, Experiment, Plan, by_setting, combine, each_cell, grid
from lowdyn.report.results import is_simple_name


def found():
    for info in pkgutil.iter_modules(lowdyn.experiments.__path__):
        module = importlib.import_module(f"lowdyn.experiments.{info.name}")
        yield from (value for value in vars(module).values() if isinstance(value, Experiment))


EXPERIMENTS = list(found())


# --- plans ----------------------------------------------------------------------------------------------------


def test_names_are_unique_and_may_be_folders():
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(names) == len(set(names)) >= 9
    assert all(is_simple_name(name) for name in names)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
class TestPlans:
    def test_there_is_one_for_every_scale_and_none_is_empty(self, experiment):
        assert tuple(experiment.plans) == SCALES == ("smoke", "quick", "paper")
        runs = [len(experiment.plans[scale].cells) * experiment.plans[scale].seeds for scale in SCALES]
        assert 1 <= runs[0] <= runs[1] <= runs[2]

    def test_every_cell_is_told_apart_and_can_be_run(self, experiment):
        images = {"images": None} if experiment.images else {"data": ()} if experiment.data else {}
        for plan in experiment.plans.values():
            assert len({json.dumps(cell, sort_keys=True) for cell in plan.cells}) == len(plan.cells)
            for cell in plan.cells:
                inspect.signature(experiment.run).bind(**cell, **images, generator=None)

    def test_images_are_known(self, experiment):
        assert set(experiment.images) <= set(IMAGE_SETS)


def test_settings_handed_on_are_known_where_they_arrive():
    known = inspect.signature(train_and_measure).parameters.keys()
    for module in (orthonormal, near_orthonormal):
        own = inspect.signature(module.run).parameters.keys()
        cells = [
            c for e in vars(module).values() if isinstance(e, Experiment) for p in e.plans.values() for c in p.cells
        ]
        assert {name for cell in cells for name in cell} <= known | own


# --- many runs, one Dataset -----------------------------------------------------------------------------------


def test_grid():
    assert grid(a=[1, 2], b="x", c=[True, False])[1:3] == (
        {"a": 1, "b": "x", "c": False},
        {"a": 2, "b": "x", "c": True},
    )
    assert grid(a=1) == ({"a": 1},)
    assert grid(a=[]) == ()
    assert grid(sizes=(2, 3)) == ({"sizes": (2, 3)},)


def a_run(steps, depth, seed):
    values = np.random.default_rng((steps, depth, seed)).normal(size=(steps, depth))
    return xr.Dataset(
        {"loss": ("step", values[:, 0]), "norm": (("step", "layer"), values), "steps": steps},
        coords={"step": np.arange(steps) * 10, "layer": np.arange(1, depth + 1)},
        attrs={"sizes": f"[{depth}]", "lowdyn": "0.1.0"},
    )


CELLS = [
    ({"depth": 2, "scale": 0.5, "kind": "linear", "every": True}, [(5, 2), (5, 2)]),
    ({"depth": 4, "scale": 0.25, "kind": "relu", "every": False}, [(3, 4), (3, 4)]),
    ({"depth": 3, "scale": 1.0, "kind": "linear", "every": True}, [(4, 3), (2, 3)]),
]


@pytest.fixture(params=["in memory", "from a file"])
def combined(request, tmp_path):
    runs = [(settings, [a_run(*shape, seed) for seed, shape in enumerate(shapes)]) for settings, shapes in CELLS]
    data = combine(runs, seeds=[7, 8])
    if request.param == "from a file":
        data = trajectory.load(trajectory.save(data, tmp_path / "all.nc"))
    return data


def test_combined_runs_come_apart_as_they_were(combined):
    assert (combined.sizes["cell"], combined.sizes["seed"]) == (3, 2)
    for (settings, data), (given, shapes) in zip(each_cell(combined), CELLS, strict=True):
        assert settings == given
        assert {name: type(value) for name, value in settings.items()} == {k: type(v) for k, v in given.items()}
        assert list(data["seed"]) == [7, 8]
        assert data.sizes["step"] == max(steps for steps, _ in shapes)
        for seed, (steps, depth) in enumerate(shapes):
            run, expected = data.isel(seed=seed, step=slice(steps)), a_run(steps, depth, seed)
            for name in expected:
                np.testing.assert_array_equal(run[name], expected[name])
            for name in expected.coords:
                np.testing.assert_array_equal(run[name], expected[name])


def test_a_shorter_run_is_filled_and_not_repeated(combined):
    *_, (_, data) = each_cell(combined)
    assert np.isnan(data["loss"].isel(seed=1, step=slice(2, None))).all()


def test_attributes_that_differ_are_dropped(combined):
    assert combined.attrs == {"lowdyn": "0.1.0"}


def test_one_cell_and_one_seed():
    data = combine([({"depth": 2}, [a_run(3, 2, 0)])], seeds=[0])
    ((settings, cell),) = each_cell(data)
    assert settings == {"depth": 2}
    np.testing.assert_array_equal(cell["norm"].isel(seed=0), a_run(3, 2, 0)["norm"])


def test_cells_that_one_setting_does_not_tell_apart_are_refused():
    cells = [
        ({"depth": depth, "width": 5, "lr": lr}, [xr.Dataset({"loss": lr})])
        for depth, lr in ((2, 0.1), (2, 0.3), (3, 0.1))
    ]
    data = combine(cells, [0])
    assert {lr: cell["loss"].item() for lr, cell in by_setting(data, "lr", depth=2).items()} == {0.1: 0.1, 0.3: 0.3}
    assert by_setting(data, "lr", depth=4) == {}
    with pytest.raises(ValueError, match="two cells have width = 5"):
        by_setting(data, "width")


def test_one_value_that_is_not_a_number_is_no_filling():
    short, long = a_run(3, 2, 0), a_run(5, 2, 0)
    short["loss"][1] = np.nan
    (_, first), (_, second) = each_cell(combine([({"depth": 2}, [short]), ({"depth": 3}, [long])], seeds=[0]))
    assert list(first["step"]) == [0, 10, 20]
    assert list(second["step"]) == [0, 10, 20, 30, 40]


def test_plans_are_frozen():
    with pytest.raises(AttributeError):
        Plan(grid(a=1)).seeds = 2
