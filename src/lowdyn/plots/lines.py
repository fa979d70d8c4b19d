"""Lines: a quantity against time, or against the layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowdyn.plots.template import GREY, PALETTE, SYMBOLS, compact, grid, show_each_name_once, text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter


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
    """Return a picture of lines; ``low`` and ``high`` become a band, of a single point a bar.

    ``limit`` = (label, value) is a horizontal line.

    >>> error = Series("depth 3", [0, 1, 2], [1, 1e-3, 0], low=[0.5, 1e-4, 0], high=[2, 1e-2, 0])
    >>> len(curves([error], x_label="step", y_label="error", log_y=True, limit=("tolerance", 1e-6)).data)
    2
    """
    from plotly.graph_objects import Scatter

    figure = grid([""], "xy", title, columns=1, row_height=330)
    looks = _looks(series)
    for one in series:
        trace, low, high = _line(one, looks, log_x=log_x, log_y=log_y)
        if low is not None and high is not None and trace.x.size == 1:
            _add_bars(trace, low, high)
        elif low is not None and high is not None:
            there = np.isfinite(low) & np.isfinite(high) & np.isfinite(trace.x)
            x, low, high = trace.x[there], low[there], high[there]
            band = Scatter(x=compact([*x, *x[::-1]]), y=compact([*low, *high[::-1]]), fill="toself")
            band.update(mode="none", fillcolor=trace.line.color, opacity=0.2, hoverinfo="skip")
            figure.add_trace(band.update(showlegend=False, legendgroup=trace.legendgroup))
        figure.add_trace(trace.update(mode="lines" if np.sum(np.isfinite(trace.y)) > 1 else "markers"))
    show_each_name_once(figure)
    figure.update_xaxes(title_text=text(x_label), type="log" if log_x else "linear")
    figure.update_yaxes(title_text=text(y_label), type="log" if log_y else "linear")
    if log_x:
        figure.update_xaxes(_decades(trace.x for trace in figure.data))
    if log_y:
        figure.update_yaxes(_decades(trace.y for trace in figure.data))
    if limit is not None and (limit[1] > 0 or not log_y):
        label = {"text": text(limit[0]), "textposition": "end", "yanchor": "bottom", "font": {"size": 12}}
        line = {"color": GREY, "width": 1.5, "dash": "dot"}
        # A shape, not `add_hline`: that one misplaces its label on a logarithmic axis.
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=limit[1], y1=limit[1], line=line, label=label)
    return figure


def layer_curves(
    panels: Mapping[str, Sequence[Series]],
    *,
    y_label: str = "",
    log_y: bool | Collection[str] = True,
    x_label: str | Sequence[str] = "layer",
    title: str = "",
) -> Figure:
    """Return a quantity against the layer (integer ticks), or another quantity, one subplot for each panel.

    ``panels``: title -> series with x = layers; ``low`` and ``high`` become error bars. With a ``y_label`` all panels
    show that quantity, on one scale; without, each shows one of its own, which its title names, on its own scale.
    ``log_y`` says whether, or for which panels, the scale is logarithmic; ``x_label`` may be one for each panel.

    >>> fall = Series("L = 4", [0, 1, 2], [1.0, 0.1, 0.01])
    >>> figure = layer_curves({"linear": [fall], "ReLU": [fall]}, y_label="D")
    >>> [trace.showlegend for trace in figure.data]
    [True, False]
    """
    columns = 2 if len(panels) == 4 else 3
    figure = grid(panels, "xy", title, columns=columns, row_height=310, gap=0.09)
    looks = _looks(one for series in panels.values() for one in series)
    for place, (name, series) in enumerate(panels.items()):
        log = log_y if isinstance(log_y, bool) else name in log_y
        at = {"row": place // columns + 1, "col": place % columns + 1}
        for one in series:
            trace, low, high = _line(one, looks, log_x=False, log_y=log)
            if low is not None and high is not None:
                _add_bars(trace, low, high)
            figure.add_trace(trace.update(mode="lines+markers"), **at)
        figure.update_yaxes(type="log" if log else "linear", **at)
        if log and not y_label:
            figure.update_yaxes(_decades(trace.y for trace in figure.select_traces(**at)), **at)
    if y_label and log_y:
        figure.update_yaxes(_decades(trace.y for trace in figure.data))
    show_each_name_once(figure)
    labels = [x_label] * len(panels) if isinstance(x_label, str) else x_label
    for place, label in enumerate(labels):
        figure.update_xaxes(title_text=text(label), row=place // columns + 1, col=place % columns + 1)
    if x_label == "layer":
        last = max((np.nanmax(np.append(trace.x, 0.0)) for trace in figure.data), default=0.0)
        figure.update_xaxes(tick0=0, dtick=1 if last <= 12 else 5)
    return figure.update_yaxes(title_text=text(y_label), matches="y") if y_label else figure


def _decades(drawn: Iterable[NDArray[Any]]) -> dict[str, int]:
    """Return ticks at whole powers of ten, eight at most, for a logarithmic axis of more than a decade and a half."""
    values = np.concatenate([np.zeros(0), *(np.asarray(part, dtype=float) for part in drawn)])
    values = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(values.max() / values.min()) if values.size else 0.0
    return {"tick0": 0, "dtick": int(np.ceil(decades / 8))} if decades > 1.5 else {}


def _add_bars(trace: Scatter, low: NDArray[Any], high: NDArray[Any]) -> None:
    """Give a trace error bars from ``low`` to ``high``."""
    bars = {"array": compact(high - trace.y), "arrayminus": compact(trace.y - low)}
    trace.error_y = {**bars, "type": "data", "symmetric": False, "thickness": 1.2, "width": 4}


def _looks(series: Iterable[Series]) -> dict[str, tuple[str, str, str]]:
    """Return colour, symbol and stroke for each group of series, in the order of their first appearance."""
    groups = dict.fromkeys(one.group or one.name for one in series)
    # Where the colours repeat the stroke changes, so that no two groups look alike.
    n, m, strokes = len(PALETTE), len(SYMBOLS), ("solid", "dashdot", "dot")
    return {group: (PALETTE[k % n], SYMBOLS[k % m], strokes[k // n % 3]) for k, group in enumerate(groups)}


def _line(
    one: Series, looks: Mapping[str, tuple[str, str, str]], *, log_x: bool, log_y: bool
) -> tuple[Scatter, NDArray[Any] | None, NDArray[Any] | None]:
    """Return the trace of a series and its low and high edge, fit for the axes."""
    from plotly.graph_objects import Scatter

    parts = [None if part is None else np.ravel(part) for part in (one.x, one.y, one.low, one.high)]
    sizes = [part.size for part in parts if part is not None]
    if len(set(sizes)) > 1 or len(sizes) == 3:
        raise ValueError(f"series {one.name!r}: arrays of sizes {sizes}; pass one size, low together with high")
    x, y = compact(one.x, positive=log_x), compact(one.y, positive=log_y)
    low, high = parts[2:]
    if log_y and low is not None and high is not None:
        # An edge that falls to zero or below ends at the smallest value drawn instead of tearing the band.
        drawn = np.concatenate([part[part > 0] for part in (low, y, high)])
        low, high = np.where(low <= 0, drawn.min(initial=np.inf), low), np.where(high > 0, high, np.nan)
    color, symbol, stroke = looks[one.group or one.name]
    line = {"color": color, "dash": "dash" if one.dash else stroke, "width": 2}
    trace = Scatter(x=x, y=y, name=text(one.name), legendgroup=text(f"{one.group or ''}|{one.name}"))
    return trace.update(line=line, marker={"color": color, "symbol": symbol, "size": 8}), low, high
