"""C2. In the deeper layers of a network, learning happens in a low-dimensional invariant subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, at_most, shown
from lowdyn.claims.seeds import at_end, first_of
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.pretrained import SPECTRA_PRETRAINED
from lowdyn.experiments.spectra import SPECTRA
from lowdyn.plots import surfaces

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C2"
PART = "see"
TITLE = "Invariant subspaces of deeper layers"
CLAIM = (
    "In the penultimate weight of a linear network, a perceptron and transformers a few singular values move while "
    "the bulk stays: ‖W(t) − W(0)‖_F lies in about 2K directions, K the number of classes."
)
SOURCE = "Lecture, 'Implication I: Invariant Subspaces in Deeper Layers'; Yaras et al. 2023, arXiv 2306.01154"
PUBLISHED = "Pictures, without settings: of linear model, MLP, toy ViT and ViT-base a few values move, the bulk stays."
DEVIATION = (
    "No settings are published. Here: orthogonal starts of scale 1, SGD with momentum 0.9, lr 0.01 falling to 0, no "
    "weight decay, cross entropy. Smoke: 500 images, width 64 (ViT 48), 40 epochs (ViT 20); quick: 2 000, width 128 "
    "(ViT 64), 40 epochs (ViT 15); paper: all images found, width 1024 (ViT 256, 6 blocks), 100 epochs. CIFAR-10, or "
    "digits where it is not found. ViT-B/16, at paper scale from a checkpoint: 4 000 images, 500 steps of 32 at lr "
    "0.002."
)
DIFFERENCE = (
    "Published are pictures. At quick scale 5 singular values of the ViT, 17 of the linear network and 25 of the "
    "perceptron leave the initial band: fewer than 3K = 30, yet more than a few."
)
SCALE_NOTE = ""
EXPERIMENTS = (SPECTRA, SPECTRA_PRETRAINED)
ENERGY, MARGIN = 0.9, 0.05  # share of ‖W(t) − W(0)‖²_F in the top 2K; share of the initial band left behind


def check(datasets: Datasets) -> list[Check]:
    """Judge, in the worst seed of each model, the energy of the move and how many singular values left the bulk."""
    checks = []
    for settings, cell in each_cell(datasets[SPECTRA.name]):
        checks += _checks(settings["model"], cell, int(datasets[SPECTRA.name].attrs["classes"]))
    pretrained = datasets[SPECTRA_PRETRAINED.name]
    if "cannot" in pretrained.attrs:
        cannot = f"cannot: {pretrained.attrs['cannot']}"
        return [*checks, shown("ViT-B/16", cannot, "a few values move, the bulk stays")]
    ((_, cell),) = each_cell(pretrained)
    return [*checks, *_checks(pretrained.attrs["model"], cell, int(pretrained.attrs["classes"]))]


def _checks(model: str, cell: xr.Dataset, classes: int) -> list[Check]:
    seeds = [cell.sel(seed=seed) for seed in cell["seed"]]
    energy = [_energy(seed["update_values"].values, 2 * classes) for seed in seeds]
    moved = [_moved(seed["singular_values"]) for seed in seeds]
    return [
        at_least(f"energy of W(T) − W(0) in its top {2 * classes} directions, {model}", energy, ENERGY),
        at_most(f"singular values outside the initial band by more than 5 %, {model}", moved, 3 * classes),
        shown(f"number of singular values, {model}", float(cell["update_values"].notnull().sum("index")[0]), "—"),
        shown(f"accuracy on the training images at the end, {model}", at_end(cell, "accuracy"), "—"),
    ]


def _energy(values: np.ndarray, top: int) -> float:
    squares = values**2
    return float(squares[:top].sum() / squares.sum())


def _moved(values: xr.DataArray) -> float:
    """Count the values of the last record outside [0.95 min, 1.05 max] of the first; NaN if any is not known."""
    first, last = (values.isel(record=record).values for record in (0, -1))
    if not (np.isfinite(first).all() and np.isfinite(last).all()):
        return float("nan")
    low, high = (1 - MARGIN) * first.min(), (1 + MARGIN) * first.max()
    return float(((last < low) | (last > high)).sum())


def draw(datasets: Datasets) -> Figure:
    """Draw the singular values of the penultimate weight over (index, step), one panel for each model."""
    cells = [(settings["model"], cell) for settings, cell in each_cell(datasets[SPECTRA.name])]
    pretrained = datasets[SPECTRA_PRETRAINED.name]
    if "cannot" not in pretrained.attrs:
        cells += [(pretrained.attrs["model"], cell) for _, cell in each_cell(pretrained)]
    steps, panels = {}, {}
    for model, cell in cells:
        one = cell.isel(seed=0)
        steps[model], panels[model] = one["record_step"].values, one["singular_values"].values
    return surfaces(steps, panels, title=first_of("Singular values of the penultimate weight", datasets[SPECTRA.name]))
