"""The pictures: plain arrays in, plotly figures out; one function for each kind of picture.

Every figure shares one template: transparent backgrounds and mid-grey lines, which read on a light and on a
dark page, and the hues of Okabe and Ito, whose orange and sky blue are darkened so that every colour keeps a
contrast of 3 : 1 against both pages.

Names, labels and titles are plain text: `<` and `&` in them are shown, never read as markup. A value that is
not finite is a gap, and so is one that is not positive on a logarithmic axis. Numbers are kept as float32
(seven digits) where its range allows, which keeps a page of many figures small.

>>> step = np.arange(100)
>>> figure = curves([Series("loss", step, np.exp(-step / 10))], x_label="step", y_label="loss", log_y=True)
>>> figure.layout.yaxis.type, len(figure.data)
('log', 1)
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
_AXIS = {
    **{"gridcolor": _FAINT, "linecolor": _GREY, "tickcolor": _GREY, "zeroline": False, "showline": True},
    **{"ticks": "outside", "ticklen": 4, "automargin": True, "exponentformat": "power"},
}
_WALL = {
    **{"gridcolor": _FAINT, "linecolor": _GREY, "zerolinecolor": _FAINT, "showbackground": False},
    **{"nticks": 6, "exponentformat": "power"},
}
_LAYOUT = {
    **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest"},
    "font": {"family": _FONT, "size": 13, "color": _GREY},
    "title": {"x": 0, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 10, "l": 10}},
    "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
    **{"xaxis": _AXIS, "yaxis": _AXIS, "scene": {"xaxis": _WALL, "yaxis": _WALL, "zaxis": _WALL}},
}
_MARGIN = {"l": 64, "r": 24, "t": 72, "b": 96}


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a picture.

    `x`, `y`: (points,). `low`, `high`: (points,) each, the spread over seeds, drawn as a band (`curves`) or
    as error bars (`layer_curves`). `dash` draws the line dashed. Series of one `group` share a colour; without a
    group, series of one name do. A name that several panels share has one legend entry, which switches all.

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

    `step`: (steps,). `panels`: title -> values (steps, indices). `index`: (indices,), 1, 2, … by default.
    ValueError when the shape of a panel does not fit.

    >>> values = np.outer(np.linspace(1, 2, 5), np.ones(3))
    >>> surfaces(range(5), {"singular values": values}).data[0].z.shape
    (5, 3)
    """
    from plotly.graph_objects import Surface

    steps = np.asarray(step)
    figure = _grid(panels, "scene", title, columns=3, narrow=1, row_height=400, gap=0.01)
    for place, (name, values) in enumerate(panels.items()):
        z = np.asarray(values, dtype=float)
        indices = np.asarray(index) if index is not None else np.arange(1, z.shape[-1] + 1)
        if z.shape != (steps.size, indices.size) or not z.size:
            raise ValueError(
                f"panel {name!r} has shape {z.shape}, but there are {steps.size} steps and {indices.size} "
                "indices: pass values as (steps, indices)"
            )
        # One thin line along each index: the eye follows a singular value, not a mesh.
        line = {"show": True, "start": float(indices[0]), "end": float(indices[-1]), "size": 1, "width": 1}
        surface = Surface(
            x=_compact(indices),
            y=_compact(steps),
            z=_compact(z),
            colorscale=_SURFACE,
            showscale=False,
            contours={"x": {**line, "color": "rgba(0,0,0,0.4)", "highlight": False}},
            lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9},
            hovertemplate=f"{_text(name)}<br>index %{{x}}, step %{{y}}<br>%{{z:.5g}}<extra></extra>",
        )
        figure.add_trace(surface, row=place // 3 + 1, col=place % 3 + 1)
    # Small indices to the left and time running to the back, as the lecture draws it.
    camera = {"eye": {"x": -1.1, "y": -1.65, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.15}}
    names = {"xaxis_title_text": "index", "yaxis_title_text": "step", "zaxis_title_text": ""}
    figure.update_scenes(aspectmode="manual", aspectratio={"x": 1, "y": 1, "z": 0.72}, camera=camera, **names)
    return figure


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
    """Return a picture of lines; `low` and `high` become a band, `limit` = (label, value) a horizontal line.

    ValueError when the arrays of a series differ in length.

    >>> error = Series("depth 3", [0, 1, 2], [1, 1e-3, 0], low=[0.5, 1e-4, 0], high=[2, 1e-2, 0])
    >>> len(curves([error], x_label="step", y_label="error", log_y=True, limit=("tolerance", 1e-6)).data)
    2
    """
    from plotly.graph_objects import Scatter

    figure = _grid([""], "xy", title, columns=1, narrow=1, row_height=330)
    styles = _styles(series)
    for one in series:
        trace, low, high = _line(one, styles, log_x=log_x, log_y=log_y)
        if low is not None and high is not None:
            there = np.isfinite(low) & np.isfinite(high) & np.isfinite(trace.x)
            x, low, high = trace.x[there], low[there], high[there]
            band = Scatter(x=_compact([*x, *x[::-1]]), y=_compact([*low, *high[::-1]]), mode="none", fill="toself")
            band.update(fillcolor=trace.line.color, opacity=0.2, hoverinfo="skip", showlegend=False)
            figure.add_trace(band.update(legendgroup=trace.legendgroup))
        figure.add_trace(trace.update(mode="lines" if np.sum(np.isfinite(trace.y)) > 1 else "markers"))
    _show_each_name_once(figure)
    figure.update_xaxes(title_text=_text(x_label), type="log" if log_x else "linear")
    figure.update_yaxes(title_text=_text(y_label), type="log" if log_y else "linear")
    if limit is not None:
        label = {"text": _text(limit[0]), "textposition": "end", "yanchor": "bottom", "font": {"size": 12}}
        line = {"color": _GREY, "width": 1.5, "dash": "dot"}
        # A shape, not `add_hline`: that one misplaces its label on a logarithmic axis.
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=limit[1], y1=limit[1], line=line, label=label)
    return figure


def layer_curves(
    panels: Mapping[str, Sequence[Series]], *, y_label: str, log_y: bool = True, title: str = ""
) -> Figure:
    """Return a quantity against the layer (integer ticks), one subplot for each panel, all on one scale.

    `panels`: title -> series with x = layers; `low` and `high` become error bars. ValueError when the arrays
    of a series differ in length.

    >>> fall = Series("L = 4", [0, 1, 2], [1.0, 0.1, 0.01])
    >>> figure = layer_curves({"linear": [fall], "ReLU": [fall]}, y_label="D")
    >>> [trace.showlegend for trace in figure.data]
    [True, False]
    """
    figure = _grid(panels, "xy", title, columns=3, narrow=1, row_height=310, gap=0.09)
    styles = _styles(one for series in panels.values() for one in series)
    for place, series in enumerate(panels.values()):
        for one in series:
            trace, low, high = _line(one, styles, log_x=False, log_y=log_y)
            if low is not None and high is not None:
                trace.error_y = {"array": _compact(high - trace.y), "arrayminus": _compact(trace.y - low)}
                trace.error_y.update(type="data", symmetric=False, thickness=1.2, width=4)
            figure.add_trace(trace.update(mode="lines+markers"), row=place // 3 + 1, col=place % 3 + 1)
    _show_each_name_once(figure)
    last = max((float(np.nanmax(trace.x)) for trace in figure.data if np.size(trace.x)), default=0.0)
    figure.update_xaxes(title_text="layer", tick0=0, dtick=1 if last <= 12 else 5)
    figure.update_yaxes(title_text=_text(y_label), type="log" if log_y else "linear", matches="y")
    return figure


def embeddings(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Return small multiples of 2-D features coloured by class, in the order given (shallow to deep).

    `panels`: title -> (points (n, 2), labels (n,)). `class_names[k]` names label k, "class k" by default. The
    two axes of a panel have one scale. ValueError when shapes do not fit or a label has no name.

    >>> points, labels = np.eye(4)[:, :2], [0, 0, 1, 1]
    >>> [trace.name for trace in embeddings({"layer 1": (points, labels)}, class_names=["cat", "dog"]).data]
    ['cat', 'dog']
    """
    from plotly.graph_objects import Scatter

    columns = 3 if len(panels) <= 6 else 5
    figure = _grid(panels, "xy", title, columns=columns, narrow=2, row_height=225, gap=0.015, between=36)
    for place, (panel, (points, labels)) in enumerate(panels.items()):
        at, label = np.asarray(points, dtype=float), np.asarray(labels)
        if at.ndim != 2 or at.shape[1] != 2 or label.shape != at.shape[:1]:
            raise ValueError(f"panel {panel!r} has points {at.shape} and labels {label.shape}: pass (n, 2) and (n,)")
        for k in map(int, np.unique(label)):
            if class_names is not None and not 0 <= k < len(class_names):
                raise ValueError(f"panel {panel!r} has label {k}: class_names names only {len(class_names)} classes")
            name = _text(class_names[k] if class_names is not None else f"class {k}")
            marker = {"color": PALETTE[k % len(PALETTE)], "symbol": _SYMBOLS[k % len(_SYMBOLS)], "size": 4.5}
            trace = Scatter(x=_compact(at[label == k, 0]), y=_compact(at[label == k, 1]), mode="markers")
            trace.update(name=name, legendgroup=name, marker=marker, opacity=0.75, hoverinfo="name")
            figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    _show_each_name_once(figure)
    # The features are a projection: their scale says nothing, so the frame carries no ticks.
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, mirror=True, constrain="domain")
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, mirror=True, constrain="domain")
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    return figure.update_layout(legend={"itemsizing": "constant"})


def _grid(
    names: Iterable[str],
    kind: Literal["xy", "scene"],
    title: str,
    *,
    columns: int,
    narrow: int,
    row_height: int,
    gap: float = 0.0,
    between: int = 84,
) -> Figure:
    """Return empty panels in `columns` columns, `between` pixels between rows, with the shared template.

    `layout.meta["narrow"]` and `["wide"]` hold the layout keys that move the panels into `narrow` columns and
    back: a page hands the one that fits to `Plotly.relayout`.
    """
    from plotly.subplots import make_subplots

    titles = [f"<b>{_text(name)}</b>" if name else " " for name in names]

    def arranged(columns: int) -> Figure:
        columns = max(1, min(columns, len(titles)))
        rows = max(1, -(-len(titles) // columns))
        inner = rows * row_height + (rows - 1) * between
        cells = [{"type": kind} if k < len(titles) else None for k in range(rows * columns)]
        specs = [cells[k : k + columns] for k in range(0, rows * columns, columns)]
        spacing = {"horizontal_spacing": gap, "vertical_spacing": between / inner}
        figure = make_subplots(rows=rows, cols=columns, specs=specs, subplot_titles=titles, **spacing)
        return figure.update_layout(height=inner + _MARGIN["t"] + _MARGIN["b"], margin=_MARGIN)

    figure = arranged(columns)
    figure.update_annotations(font_size=13)
    meta = {"wide": _positions(figure), "narrow": _positions(arranged(narrow))}
    return figure.update_layout(template={"layout": _LAYOUT}, title_text=_text(title), meta=meta)


def _positions(figure: Figure) -> dict[str, Any]:
    """Return the layout keys that say where panels and titles lie, as `Plotly.relayout` takes them."""
    layout = figure.layout.to_plotly_json()
    keys: dict[str, Any] = {"height": layout["height"]}
    panels = {name: part for name, part in layout.items() if isinstance(part, dict) and "domain" in part}
    keys |= {f"{name}.domain": part["domain"] for name, part in panels.items()}
    for place, note in enumerate(layout.get("annotations", ())):
        keys |= {f"annotations[{place}].x": note["x"], f"annotations[{place}].y": note["y"]}
    return keys


def _styles(series: Iterable[Series]) -> dict[str, dict[str, Any]]:
    """Return colour and symbol for each group of series, in the order of their first appearance."""
    groups = dict.fromkeys(one.group or one.name for one in series)
    return {
        group: {"color": PALETTE[k % len(PALETTE)], "symbol": _SYMBOLS[k % len(_SYMBOLS)]}
        for k, group in enumerate(groups)
    }


def _line(
    one: Series, styles: Mapping[str, dict[str, Any]], *, log_x: bool, log_y: bool
) -> tuple[Scatter, NDArray[Any] | None, NDArray[Any] | None]:
    """Return the trace of a series and its low and high edge, fit for the axes."""
    from plotly.graph_objects import Scatter

    x, y, low, high = (None if v is None else np.ravel(np.asarray(v)) for v in (one.x, one.y, one.low, one.high))
    sizes = [v.size for v in (x, y, low, high) if v is not None]
    if x is None or y is None or len(set(sizes)) > 1 or (low is None) != (high is None):
        raise ValueError(f"series {one.name!r} has arrays of sizes {sizes}: pass x, y (and low with high) of one size")
    x, y = _compact(x, positive=log_x), _compact(y, positive=log_y)
    if log_y and low is not None and high is not None:
        # An edge that falls to zero or below ends at the smallest value drawn instead of tearing the band.
        drawn = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in (low, y, high)])
        low = np.where(low > 0, low, drawn.min(initial=np.inf))
    style = styles[one.group or one.name]
    stroke = "dash" if one.dash else "solid"
    trace = Scatter(x=x, y=y, name=_text(one.name), legendgroup=_text(f"{one.group or ''}|{one.name}"))
    trace.update(line={"color": style["color"], "dash": stroke, "width": 2}, marker={**style, "size": 8})
    return trace, low, high


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
    array = np.asarray(array, dtype=np.float64)
    array = np.where(np.isfinite(array) & ((array > 0) | (not positive)), array, np.nan)
    sizes = np.abs(array[np.isfinite(array) & (array != 0)])
    limits = np.finfo(np.float32)
    fits = not sizes.size or (sizes.min() >= limits.tiny and sizes.max() <= limits.max)
    return array.astype(np.float32) if fits else array


def _text(text: str) -> str:
    """Return text that plotly, which reads a little HTML, shows as it stands."""
    return html.escape(str(text), quote=False)
