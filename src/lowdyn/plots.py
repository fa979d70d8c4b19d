"""The pictures: plain arrays in, plotly figures out; one function for each kind of picture.

Every figure shares one template: transparent backgrounds and mid-grey lines, which read on a light and on a dark page,
and the hues of Okabe and Ito, of which orange and sky blue are darkened: every colour has a contrast of 3 : 1 on both.

Names, labels and titles are plain text: ``<`` and ``&`` in them are shown, never read as markup. A value that is not
finite is a gap, and so is one that is not positive on a logarithmic axis. Numbers are kept as float32 (seven digits)
where its range allows, which keeps a page of many figures small.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

__all__ = ["PALETTE", "Series", "curves", "embeddings", "layer_curves", "surfaces"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87F00", "#3A96CC", "#808080")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
# Blue to yellow over teal, as viridis, without its near-black end, which a dark page would swallow.
_SURFACE = ["#3B5DB5", "#2A7FBA", "#1F9C9C", "#4DB36B", "#A9BF3B", "#F2CB3A"]
_GREY, _FAINT = "#808080", "rgba(128,128,128,0.28)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
# fmt: off
_AXIS = {"gridcolor": _FAINT, "linecolor": _GREY, "tickcolor": _GREY, "zeroline": False, "showline": True,
         "ticks": "outside", "ticklen": 4, "automargin": True, "exponentformat": "power",
         "title": {"font": {"size": 14}, "standoff": 8}, "tickfont": {"size": 12}}
_WALL = {"gridcolor": _FAINT, "linecolor": _GREY, "zerolinecolor": _FAINT, "showbackground": False, "nticks": 5,
         "exponentformat": "power"}
_LAYOUT = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest",
           "font": {"family": _FONT, "size": 13, "color": _GREY},
           "title": {"x": 0, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12, "l": 14},
                     "font": {"size": 15}},
           "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
           "xaxis": _AXIS, "yaxis": _AXIS, "scene": {"xaxis": _WALL, "yaxis": _WALL, "zaxis": _WALL}}
# fmt: on


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a picture.

    ``x``, ``y``: (points,). ``low``, ``high``: (points,) each, the spread over seeds, drawn as a band (``curves``) or
    as error bars (``layer_curves``). ``dash`` draws the line dashed. Series of one ``group`` share a colour; without a
    group, series of one name do. A name that several panels share has one legend entry, which switches all.
    The functions that draw series raise ValueError when arrays of one differ in length.

    >>> Series("depth 3", [0, 1], [1.0, 0.5]).group is None
    True
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    dash: bool = False
    group: str | None = None


def surfaces(
    step: ArrayLike, panels: Mapping[str, ArrayLike], *, index: ArrayLike | None = None, title: str = ""
) -> Figure:
    """Return a row of rotatable 3-D surfaces over (singular-value index, step), one for each panel.

    ``step``: (steps,). ``panels``: title -> values (steps, indices). ``index``: (indices,), 1, 2, … by default.
    ValueError when the shape of a panel does not fit.

    >>> values = np.outer(np.linspace(1, 2, 5), np.ones(3))
    >>> surfaces(range(5), {"singular values": values}).data[0].z.shape
    (5, 3)
    """
    from plotly.graph_objects import Surface

    steps = np.asarray(step)
    figure = _grid(panels, "scene", title, columns=3, row_height=340, gap=0.01, between=30, sides=8, foot=8)
    for place, (name, values) in enumerate(panels.items()):
        z = np.asarray(values, dtype=float)
        indices = np.asarray(index) if index is not None else np.arange(1, z.shape[-1] + 1)
        if z.shape != (steps.size, indices.size) or z.size == 0:
            raise ValueError(f"panel {name!r} has shape {z.shape}, not (steps, indices) {steps.size, indices.size}")
        # One thin line along each index: the eye follows a singular value, not a mesh.
        first, last = float(indices[0]), float(indices[-1])
        lines = {"show": True, "start": first, "end": last, "size": max(1.0, (last - first) / 50), "width": 1}
        surface = Surface(x=_compact(indices), y=_compact(steps), z=_compact(z), colorscale=_SURFACE, showscale=False)
        surface.contours.x = {**lines, "color": "#28406B", "highlight": False}
        surface.lighting = {"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9}
        surface.hovertemplate = f"{_text(name)}<br>index %{{x}}, step %{{y}}<br>%{{z:.5g}}<extra></extra>"
        figure.add_trace(surface, row=place // 3 + 1, col=place % 3 + 1)
    # Small indices to the left and time running to the back, as the lecture draws it.
    camera = {"eye": {"x": -1.25, "y": -1.5, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.12}}
    figure.update_scenes(xaxis_title_text="index", yaxis_title_text="step", zaxis_title_text="", camera=camera)
    return figure.update_scenes(aspectmode="manual", aspectratio={"x": 1, "y": 1, "z": 0.72})


def curves(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    limit: tuple[str, float] | None = None,
) -> Figure:
    """Return a picture of lines; ``low`` and ``high`` become a band, ``limit`` = (label, value) a horizontal line.

    >>> error = Series("depth 3", [0, 1, 2], [1, 1e-3, 0], low=[0.5, 1e-4, 0], high=[2, 1e-2, 0])
    >>> len(curves([error], x_label="step", y_label="error", log_y=True, limit=("tolerance", 1e-6)).data)
    2
    """
    from plotly.graph_objects import Scatter

    figure = _grid([""], "xy", title, columns=1, row_height=330)
    looks = _looks(series)
    for one in series:
        trace, low, high = _line(one, looks, log_x=log_x, log_y=log_y)
        if low is not None and high is not None:
            there = np.isfinite(low) & np.isfinite(high) & np.isfinite(trace.x)
            x, low, high = trace.x[there], low[there], high[there]
            band = Scatter(x=_compact([*x, *x[::-1]]), y=_compact([*low, *high[::-1]]), fill="toself")
            band.update(mode="none", fillcolor=trace.line.color, opacity=0.2, hoverinfo="skip")
            figure.add_trace(band.update(showlegend=False, legendgroup=trace.legendgroup))
        figure.add_trace(trace.update(mode="lines" if np.sum(np.isfinite(trace.y)) > 1 else "markers"))
    _show_each_name_once(figure)
    figure.update_xaxes(title_text=_text(x_label), type="log" if log_x else "linear")
    figure.update_yaxes(title_text=_text(y_label), type="log" if log_y else "linear")
    if limit is not None and (limit[1] > 0 or not log_y):
        label = {"text": _text(limit[0]), "textposition": "end", "yanchor": "bottom", "font": {"size": 12}}
        line = {"color": _GREY, "width": 1.5, "dash": "dot"}
        # A shape, not `add_hline`: that one misplaces its label on a logarithmic axis.
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=limit[1], y1=limit[1], line=line, label=label)
    return figure


def layer_curves(
    panels: Mapping[str, Sequence[Series]], *, y_label: str, log_y: bool = True, title: str = ""
) -> Figure:
    """Return a quantity against the layer (integer ticks), one subplot for each panel, all on one scale.

    ``panels``: title -> series with x = layers; ``low`` and ``high`` become error bars.

    >>> fall = Series("L = 4", [0, 1, 2], [1.0, 0.1, 0.01])
    >>> figure = layer_curves({"linear": [fall], "ReLU": [fall]}, y_label="D")
    >>> [trace.showlegend for trace in figure.data]
    [True, False]
    """
    figure = _grid(panels, "xy", title, columns=3, row_height=310, gap=0.09)
    looks = _looks(one for series in panels.values() for one in series)
    for place, series in enumerate(panels.values()):
        for one in series:
            trace, low, high = _line(one, looks, log_x=False, log_y=log_y)
            if low is not None and high is not None:
                bars = {"array": _compact(high - trace.y), "arrayminus": _compact(trace.y - low)}
                trace.error_y = {**bars, "type": "data", "symmetric": False, "thickness": 1.2, "width": 4}
            figure.add_trace(trace.update(mode="lines+markers"), row=place // 3 + 1, col=place % 3 + 1)
    _show_each_name_once(figure)
    last = max((np.nanmax(np.append(trace.x, 0.0)) for trace in figure.data), default=0.0)
    figure.update_xaxes(title_text="layer", tick0=0, dtick=1 if last <= 12 else 5)
    figure.update_yaxes(title_text=_text(y_label), matches="y", type="log" if log_y else "linear")
    return figure


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
    figure = _grid(
        panels, "xy", title, columns=columns, narrow=2, row_height=225, gap=0.015, between=36, sides=16, foot=44
    )
    for place, (panel, (points, labels)) in enumerate(panels.items()):
        at, label = np.asarray(points, dtype=float), np.asarray(labels)
        if at.ndim != 2 or at.shape[1] != 2 or label.shape != at.shape[:1]:
            raise ValueError(f"panel {panel!r}: points {at.shape}, labels {label.shape}; pass (n, 2), (n,)")
        for k in map(int, np.unique(label)):
            if class_names is not None and not 0 <= k < len(class_names):
                raise ValueError(f"panel {panel!r} has label {k}: class_names has {len(class_names)} names")
            name = _text(class_names[k] if class_names is not None else f"class {k}")
            marker = {"color": PALETTE[k % len(PALETTE)], "symbol": _SYMBOLS[k % len(_SYMBOLS)], "size": 4.5}
            trace = Scatter(x=_compact(at[label == k, 0]), y=_compact(at[label == k, 1]), mode="markers")
            trace.update(name=name, legendgroup=name, marker=marker, opacity=0.9, hoverinfo="name")
            figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    _show_each_name_once(figure)
    # The features are a projection: their scale says nothing, so the frame carries no ticks.
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, mirror=True)
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, mirror=True)
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    return figure.update_layout(legend={"itemsizing": "constant"})


def _grid(
    names: Iterable[str], kind: Literal["xy", "scene"], title: str, *, columns: int, row_height: int,
    narrow: int = 1, gap: float = 0.0, between: int = 84, sides: int = 64, foot: int = 88,
) -> Figure:  # fmt: skip
    """Return empty panels with the shared template; ``between`` rows, at the ``sides`` and at the ``foot`` are pixels.

    ``layout.meta["narrow"]`` and ``["wide"]`` hold the layout keys that move the panels into ``narrow`` columns and
    back: a page hands the one that fits to ``Plotly.relayout``.
    """
    from plotly.subplots import make_subplots

    titles = [f"<b>{_text(name)}</b>" if name else " " for name in names] or [" "]
    # Plotly's buttons lie at the top right; titles stand below them.
    top = 32 + (18 if set(titles) != {" "} else 0) + (24 if title else 0)

    def arranged(columns: int) -> tuple[Figure, dict[str, Any]]:
        columns = min(columns, len(titles))
        rows = -(-len(titles) // columns)
        inner = rows * row_height + (rows - 1) * between
        cells = [{"type": kind} if k < len(titles) else None for k in range(rows * columns)]
        specs = [cells[k : k + columns] for k in range(0, rows * columns, columns)]
        spacing = {"horizontal_spacing": gap, "vertical_spacing": between / inner}
        figure = make_subplots(rows=rows, cols=columns, specs=specs, subplot_titles=titles, **spacing)
        parts = figure.layout.to_plotly_json().items()
        keys = {f"{name}.domain": part["domain"] for name, part in parts if "domain" in part}
        keys["height"] = top + inner + foot
        for place, note in enumerate(figure.layout.annotations):
            keys |= {f"annotations[{place}].x": note.x, f"annotations[{place}].y": note.y}
        return figure, keys

    (figure, wide), (_, stacked) = arranged(columns), arranged(narrow)
    margin = {"l": sides, "r": min(sides, 24), "t": top, "b": foot}
    figure.update_annotations(font_size=13)
    figure.update_layout(template={"layout": _LAYOUT}, title_text=_text(title), margin=margin)
    return figure.update_layout(height=wide["height"], meta={"wide": wide, "narrow": stacked})


def _looks(series: Iterable[Series]) -> dict[str, tuple[str, str, str]]:
    """Return colour, symbol and stroke for each group of series, in the order of their first appearance."""
    groups = dict.fromkeys(one.group or one.name for one in series)
    # Where the colours repeat the stroke changes, so that no two groups look alike.
    n, m, strokes = len(PALETTE), len(_SYMBOLS), ("solid", "dashdot", "dot")
    return {group: (PALETTE[k % n], _SYMBOLS[k % m], strokes[k // n % 3]) for k, group in enumerate(groups)}


def _line(
    one: Series, looks: Mapping[str, tuple[str, str, str]], *, log_x: bool, log_y: bool
) -> tuple[Scatter, NDArray[Any] | None, NDArray[Any] | None]:
    """Return the trace of a series and its low and high edge, fit for the axes."""
    from plotly.graph_objects import Scatter

    parts = [None if part is None else np.ravel(part) for part in (one.x, one.y, one.low, one.high)]
    sizes = [part.size for part in parts if part is not None]
    if len(set(sizes)) > 1 or len(sizes) == 3:
        raise ValueError(f"series {one.name!r}: arrays of sizes {sizes}; pass one size, low together with high")
    x, y = _compact(one.x, positive=log_x), _compact(one.y, positive=log_y)
    low, high = parts[2:]
    if log_y and low is not None and high is not None:
        # An edge that falls to zero or below ends at the smallest value drawn instead of tearing the band.
        drawn = np.concatenate([part[part > 0] for part in (low, y, high)])
        low, high = np.where(low <= 0, drawn.min(initial=np.inf), low), np.where(high > 0, high, np.nan)
    color, symbol, stroke = looks[one.group or one.name]
    line = {"color": color, "dash": "dash" if one.dash else stroke, "width": 2}
    trace = Scatter(x=x, y=y, name=_text(one.name), legendgroup=_text(f"{one.group or ''}|{one.name}"))
    return trace.update(line=line, marker={"color": color, "symbol": symbol, "size": 8}), low, high


def _show_each_name_once(figure: Figure) -> None:
    """Leave one legend entry for each legend group: its first trace that is not a band."""
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is not False:
            trace.showlegend = trace.legendgroup not in seen
            seen.add(trace.legendgroup)
    figure.update_layout(showlegend=len(seen) > 0)


def _compact(values: ArrayLike, *, positive: bool = False) -> NDArray[Any]:
    """Return float32 where its range holds the values; integers stay; what cannot be drawn is NaN."""
    array = np.asarray(values)
    if array.dtype.kind in "iu" and not positive:
        return array
    array = array.astype(np.float64)
    array[~np.isfinite(array) | (positive & (array <= 0))] = np.nan
    sizes, limits = np.abs(array[array != 0]), np.finfo(np.float32)
    return array.astype(np.float32) if not np.any((sizes < limits.tiny) | (sizes > limits.max)) else array


def _text(text: str) -> str:
    """Return text that plotly, which reads a little HTML, shows as it stands."""
    return html.escape(str(text), quote=False)
