"""Features in two dimensions, coloured by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lowdyn.plots.template import PALETTE, SYMBOLS, compact, grid, show_each_name_once, text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def embeddings(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]], *, class_names: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Return small multiples of 2-D features coloured by class, in the order given (shallow to deep).

    ``panels``: title -> (points (n, 2), labels (n,)). ``class_names[k]`` names label k, "class k" by default.
    ValueError when shapes do not fit or a label has no name.

    >>> points, labels = np.eye(4)[:, :2], [0, 0, 1, 1]
    >>> [trace.name for trace in embeddings({"layer 1": (points, labels)}, class_names=["cat", "dog"]).data]
    ['cat', 'dog']
    """
    from plotly.graph_objects import Scatter

    columns = 3 if len(panels) <= 6 else 5
    figure = grid(
        panels, "xy", title, columns=columns, narrow=2, row_height=225, gap=0.015, between=36, sides=16, foot=44
    )
    for place, (panel, (points, labels)) in enumerate(panels.items()):
        at, label = np.asarray(points, dtype=float), np.asarray(labels)
        if at.ndim != 2 or at.shape[1] != 2 or label.shape != at.shape[:1]:
            raise ValueError(f"panel {panel!r}: points {at.shape}, labels {label.shape}; pass (n, 2), (n,)")
        for k in map(int, np.unique(label)):
            if class_names is not None and not 0 <= k < len(class_names):
                raise ValueError(f"panel {panel!r} has label {k}: class_names has {len(class_names)} names")
            name = text(class_names[k] if class_names is not None else f"class {k}")
            marker = {"color": PALETTE[k % len(PALETTE)], "symbol": SYMBOLS[k % len(SYMBOLS)], "size": 4.5}
            trace = Scatter(x=compact(at[label == k, 0]), y=compact(at[label == k, 1]), mode="markers")
            trace.update(name=name, legendgroup=name, marker=marker, opacity=0.9, hoverinfo="name")
            figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    show_each_name_once(figure)
    # The features are a projection: their scale says nothing, so the frame carries no ticks.
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, mirror=True)
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, mirror=True)
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    return figure.update_layout(legend={"itemsizing": "constant"})
