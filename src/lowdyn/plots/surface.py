"""Surfaces over (index, step): how singular values evolve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lowdyn.plots.template import compact, grid, text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Blue to yellow over teal, as viridis, without its near-black end, which a dark page would swallow.
_SURFACE = ["#3B5DB5", "#2A7FBA", "#1F9C9C", "#4DB36B", "#A9BF3B", "#F2CB3A"]


def surfaces(
    step: ArrayLike | Mapping[str, ArrayLike],
    panels: Mapping[str, ArrayLike],
    *,
    index: ArrayLike | None = None,
    title: str = "",
) -> Figure:
    """Return a row of rotatable 3-D surfaces over (singular-value index, step), one for each panel.

    ``step``: (steps,), or for each panel its own. ``panels``: title -> values (steps, indices). ``index``: (indices,),
    1, 2, … by default.
    ValueError when the shape of a panel does not fit.

    >>> values = np.outer(np.linspace(1, 2, 5), np.ones(3))
    >>> surfaces(range(5), {"singular values": values}).data[0].z.shape
    (5, 3)
    """
    from plotly.graph_objects import Surface

    figure = grid(panels, "scene", title, columns=3, row_height=340, gap=0.01, between=30, sides=8, foot=8)
    for place, (name, values) in enumerate(panels.items()):
        steps = np.asarray(step[name] if isinstance(step, Mapping) else step)
        z = np.asarray(values, dtype=float)
        indices = np.asarray(index) if index is not None else np.arange(1, z.shape[-1] + 1)
        if z.shape != (steps.size, indices.size) or z.size == 0:
            raise ValueError(f"panel {name!r} has shape {z.shape}, not (steps, indices) {steps.size, indices.size}")
        # One thin line along each index: the eye follows a singular value, not a mesh.
        first, last = float(indices[0]), float(indices[-1])
        lines = {"show": True, "start": first, "end": last, "size": max(1.0, (last - first) / 50), "width": 1}
        surface = Surface(x=compact(indices), y=compact(steps), z=compact(z), colorscale=_SURFACE, showscale=False)
        surface.contours.x = {**lines, "color": "#28406B", "highlight": False}
        surface.lighting = {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9}
        surface.hovertemplate = f"{text(name)}<br>index %{{x}}, step %{{y}}<br>%{{z:.5g}}<extra></extra>"
        figure.add_trace(surface, row=place // 3 + 1, col=place % 3 + 1)
    # Small indices to the left and time running to the back, as the lecture draws it.
    camera = {"eye": {"x": -1.25, "y": -1.5, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.12}}
    figure.update_scenes(xaxis_title_text="index", yaxis_title_text="step", zaxis_title_text="", camera=camera)
    return figure.update_scenes(aspectmode="manual", aspectratio={"x": 1, "y": 1, "z": 0.72})
