"""C14. The deeper layers of a classifier train as pairs W = BA of about as many channels as there are classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, at_most, shown
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.lowrank_mlp import ADVISED, DENSE, LOWRANK_MLP, RANKS
from lowdyn.plots import Series, curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C14"
TITLE = "Low-rank training of the deeper layers"
CLAIM = (
    "The last two of three hidden layers, trained throughout as W = BA of rank r, lose little accuracy from r near the "
    "number of classes on, and save memory and time."
)
SOURCE = "Lecture, 'Low-Rank Training of Nonlinear Networks?'"
PUBLISHED = (
    "Average accuracy, parameters, memory: normal 95.09 %, 5.59M, 0.376 GiB; r = 10: 94.57 %, 1.67M, 0.113 GiB; "
    "r = 1: 90.86 %, 1.59M, 0.108 GiB. (5.59M is one 2000 x 2000 layer; 1.67M and 1.59M are two of them as pairs.)"
)
DEVIATION = (
    "Training is ours, the slides give none: Adam 1e-3 to 0 linearly, batches of 128, 20 epochs (USPS 60). Quick: "
    "width 256, 10 000 images, 8 epochs; smoke: width 128, 1 500 images, 40 epochs; both at 3e-3, with fewer ranks. "
    "Without a data folder: digits. The limits of cost are those published at width 2000; below, costs must fall."
)
EXPERIMENTS = (LOWRANK_MLP,)
FULL = 2000  # the published width


def check(datasets: Datasets) -> list[Check]:
    """Judge accuracy on the average over data sets, and costs on the data set where they fall least."""
    cells = _by_variant(datasets)
    dense, ten, one = (_accuracy(cells[variant]) for variant in (DENSE, "r = 10", "r = 1"))
    parameters, memory, seconds = (
        max(float((data[name] / data[f"dense_{name}"]).median()) for data in cells["r = 10"].values())
        for name in ("parameters", "peak_bytes", "step_seconds")
    )
    published = float(datasets[LOWRANK_MLP.name]["width"].max()) >= FULL
    limits = (0.18, 0.40, 1 / 3.5) if published else (1.0, 1.0, 1.0)
    checks = [
        at_most("points of accuracy that r = 10 is below dense", (dense - ten).mean(), 0.6),
        at_least("points of accuracy that r = 1 is below r = 10", (ten - one).mean(), 1.0),
        at_most("parameters of r = 10 over dense", parameters, limits[0]),
        at_most("peak memory of a step, r = 10 over dense", memory, limits[1]),
        at_most("time of a step, r = 10 over dense, timed in turn", seconds, limits[2]),
        shown("advised ranks against r = 10", _advice(cells), "as accurate with no more parameters"),
    ]
    return checks + [shown(f"{variant}: accuracy; costs", _row(sets), "—") for variant, sets in cells.items()]


def draw(datasets: Datasets) -> Figure:
    """Draw test accuracy against the rank for each data set; dashed the dense network's, a point for advised ranks."""
    cells = _by_variant(datasets)
    uniform = {variant: ranks[0] for variant, ranks in RANKS.items() if ranks[0] == ranks[1] and variant in cells}
    axis = [min(uniform.values()), max(uniform.values())]
    lines = []
    for data in cells[DENSE]:
        low, middle, high = np.array([_band(cells[variant][data]) for variant in uniform]).T
        dense = [_band(cells[DENSE][data])[1]] * 2
        advised = cells[ADVISED][data]
        lines += [
            Series(f"{data}, pairs", list(uniform.values()), middle, low, high, group=data),
            Series(f"{data}, dense", axis, dense, dash=True, group=data),
            Series(f"{data}, advised", [float(advised["rank"].mean())], [_band(advised)[1]], group=data),
        ]
    return curves(
        lines,
        x_label="rank of the pairs (advised: mean of both)",
        y_label="test accuracy, %",
        log_x=True,
        title="Accuracy of low-rank training",
    )


def _by_variant(datasets: Datasets) -> dict[str, dict[str, xr.Dataset]]:
    """Return the runs over seeds, by variant and data set."""
    cells: dict[str, dict[str, xr.Dataset]] = {}
    for settings, data in each_cell(datasets[LOWRANK_MLP.name]):
        cells.setdefault(settings["variant"], {})[settings["data"]] = data
    return cells


def _accuracy(sets: dict[str, xr.Dataset]) -> xr.DataArray:
    """Return the test accuracy in percent, averaged over data sets, of each seed."""
    return 100 * xr.concat([data["test_accuracy"] for data in sets.values()], dim="data").mean("data")


def _band(data: xr.Dataset) -> tuple[float, float, float]:
    """Return mean - sd, mean and mean + sd of the test accuracy over seeds, in percent."""
    mean, deviation = 100 * float(data["test_accuracy"].mean()), 100 * _deviation(data["test_accuracy"])
    return mean - deviation, mean, mean + deviation


def _deviation(values: xr.DataArray) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else 0.0


def _spread(values: xr.DataArray) -> str:
    return f"{float(values.mean()):.2f} ± {_deviation(values):.2f}"


def _advice(cells: dict[str, dict[str, xr.Dataset]]) -> str:
    """Say how advised ranks did against r = 10, and where they miss, why."""
    gain = _accuracy(cells[ADVISED]) - _accuracy(cells["r = 10"])
    size = max(
        float((cells[ADVISED][one]["parameters"] / ten["parameters"]).max()) for one, ten in cells["r = 10"].items()
    )
    ranks = ", ".join(
        f"{name} {'/'.join(f'{rank:.3g}' for rank in data['rank'].mean('seed').values)}"
        for name, data in cells[ADVISED].items()
    )
    text = f"{_spread(gain)} points at {size:.3f} of the parameters at most (ranks {ranks})"
    if size > 1:
        text += "; more parameters, since 90 % of the energy of the warm-up's moves takes more than 10 directions"
    if float(gain.mean()) < 0:
        text += (
            "; less accurate, by a spread over seeds of as much"
            if -float(gain.mean()) <= _deviation(gain)
            else ("; less accurate: one epoch of warm-up moves in fewer directions than the whole training")
        )
    return text


def _row(sets: dict[str, xr.Dataset]) -> str:
    """Say accuracy by data set and the costs on the first of them."""
    first = next(iter(sets.values())).median("seed")
    accuracies = ", ".join(f"{name} {_spread(100 * data['test_accuracy'])}" for name, data in sets.items())
    return (
        f"{_spread(_accuracy(sets))} % ({accuracies}); {float(first['parameters']):,.0f} parameters, "
        f"{float(first['peak_bytes']) / 2**20:.1f} MiB, {float(first['flops']) / 1e9:.3g} GFLOPs, "
        f"{float(first['step_seconds'] / first['dense_step_seconds']):.2f} of dense's time a step"
    )
