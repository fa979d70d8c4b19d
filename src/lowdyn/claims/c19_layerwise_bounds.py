"""C19. The layerwise theorem's bounds on compression, and on discrimination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lowdyn.claims.claim import Check, Datasets, at_least, numbers_text, shown
from lowdyn.claims.layerwise import over_layers
from lowdyn.experiments.experiment import each_cell
from lowdyn.experiments.layerwise_bounds import LAYERWISE_BOUNDS
from lowdyn.plots import Series, layer_curves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ID = "C19"
PART = "see"
TITLE = "Bounds on the compression per layer"
CLAIM = (
    "For l ≤ L − 2 the ratio D_{l+1}/D_l lies between cε²/(κ(4n)^{1/L}) and κε²/(c(n/2)^{1/L}), and discrimination is "
    "at least 1 − 32(θ + 4δ)(L − l − 1)/L."
)
SOURCE = "Lecture, theorem 'Progressive feature compression with linear rate'; Wang et al. 2023, arXiv 2311.02960"
PUBLISHED = "No values for c, κ. With c = κ = 1 at L = 8: [0.158, 0.204] around 0.185; the second bound is vacuous."
DEVIATION = (
    "Judged with c = κ = 1, the sharpest form. Orthonormal samples at widths 50 and 200 (paper: to 700), depth 2–5, 8, "
    "through the exact reduction; unit-norm Gaussian samples are shown, their θ is far outside the assumptions."
)
DIFFERENCE = (
    "The published −51 … −12 agree with what δ alone gives on the Gaussian samples at l = 1 … 4. The lowest bound of "
    "all our runs is far lower, −674 at paper scale: δ is near ε²√(d − K) and grows with the width, and on Gaussian "
    "samples θ is near 14 and more. What the theorem assumes to be 0 is not quite: in more dimensions than samples, "
    "what the start does outside their span stays, and the end-to-end matrix is up to a fifth off the minimum-norm "
    "solution; steps of finite size take layers 0.04 off balance."
)
SCALE_NOTE = ""
EXPERIMENTS = (LAYERWISE_BOUNDS,)
ASSUMPTIONS = {
    "theta": "θ, inputs off orthonormal",
    "minimum_norm_residual": "end-to-end matrix off the minimum-norm solution",
    "balancedness": "layers off balance",
    "bulk_spread": "spread ρ of the bulk",
}


def check(datasets: Datasets) -> list[Check]:
    """Judge the ratios on orthonormal samples; report what the theorem assumes, slack, and the vacuous bound."""
    data = datasets[LAYERWISE_BOUNDS.name]
    cells = list(each_cell(data))
    exact = [cell for settings, cell in cells if settings["inputs"] == "orthonormal"]
    checks = [
        at_least(
            "share of ratios within the bounds, orthonormal samples", [cell["ratio_inside"] for cell in exact], 1.0
        ),
        at_least("least slack to the lower bound", [cell["slack_lower"] for cell in exact], 1.0),
        at_least("least slack to the upper bound", [cell["slack_upper"] for cell in exact], 1.0),
    ]
    for name, text in ASSUMPTIONS.items():
        largest = float(np.max([float(cell[name].max(skipna=False)) for cell in exact]))
        checks.append(shown(f"assumption: {text}, largest", largest, 0.0))
    for settings, cell in cells:
        name = f"{settings['inputs']}, L = {settings['depth']}, width {settings['width']}"
        interval = (cell["ratio_lower"].mean(), cell["compression_ratio"].mean(), cell["ratio_upper"].mean())
        published = "0.158, 0.185, 0.204" if settings["depth"] == 8 else "—"
        checks.append(shown(f"lower bound, ratio, upper bound; {name}", numbers_text(map(float, interval)), published))
    gaussian = [cell for settings, cell in cells if settings["inputs"] != "orthonormal"]
    vacuous = float(np.mean([float(cell["vacuous"].mean()) for cell in exact + gaussian]))
    return [
        *checks,
        shown(
            "share of Gaussian runs' ratios within the bounds, from layer 1 on (from the input it is outside)",
            float(np.mean([cell["ratio_inside"].sel(layer=slice(1, None)).mean() for cell in gaussian])),
            "—",
        ),
        shown("θ of the Gaussian samples", float(np.max([float(cell["theta"].max()) for cell in gaussian])), "—"),
        shown("share of layers where the bound on discrimination is vacuous (at most 0)", vacuous, "1"),
        shown("lowest bound on discrimination", float(np.nanmin(data["discrimination_lower"])), "—"),
        *(_from_delta(settings, cell) for settings, cell in cells if settings["inputs"] != "orthonormal"),
    ]


def _from_delta(settings: Mapping[str, Any], cell: xr.Dataset) -> Check:
    """Show the bound on discrimination that θ = 0 would give, from layer 1 on."""
    depth, layer = settings["depth"], cell["layer"].sel(layer=slice(1, None))
    bound = 1 - 128 * cell["delta"] * (depth - 1 - layer) / depth
    text = f"bound on discrimination from δ alone, Gaussian samples, l = 1 … {int(layer[-1])}"
    return shown(text, f"{float(bound.min()):.1f} … {float(bound.max()):.1f}", "−51 … −12")


def draw(datasets: Datasets) -> Figure:
    """Draw the ratio (mean, range over seeds) against the layer between its bounds: a panel per depth, least width."""
    panels: dict[str, list[Series]] = {}
    for settings, cell in each_cell(datasets[LAYERWISE_BOUNDS.name]):
        title = f"{settings['inputs']}, L = {settings['depth']}"
        if title in panels:
            continue
        layers, mean = cell["layer"].values, cell.mean("seed")
        panels[title] = [
            over_layers(cell, "compression_ratio", "Dₗ₊₁/Dₗ"),
            Series("lower bound", layers, np.full(len(layers), float(mean["ratio_lower"])), dash=True),
            Series("upper bound", layers, np.full(len(layers), float(mean["ratio_upper"])), dash=True),
        ]
    return layer_curves(panels, y_label="ratio", title="Compression per layer and its bounds")
