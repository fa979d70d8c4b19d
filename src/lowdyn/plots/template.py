"""What every figure shares: colours, fonts, the grid of panels, and how numbers and text get into them."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87F00", "#3A96CC", "#808080")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
GREY, _FAINT = "#808080", "rgba(128,128,128,0.28)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
# fmt: off
_AXIS = {"gridcolor": _FAINT, "linecolor": GREY, "tickcolor": GREY, "zeroline": False, "showline": True,
         "ticks": "outside", "ticklen": 4, "automargin": True, "exponentformat": "power",
         "title": {"font": {"size": 14}, "standoff": 8}, "tickfont": {"size": 12}}
_WALL = {"gridcolor": _FAINT, "linecolor": GREY, "zerolinecolor": _FAINT, "showbackground": False, "nticks": 5,
         "exponentformat": "power"}
_LAYOUT = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest",
           "font": {"family": _FONT, "size": 13, "color": GREY},
           "title": {"x": 0, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12, "l": 14},
                     "font": {"size": 15}},
           "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
           "xaxis": _AXIS, "yaxis": _AXIS, "scene": {"xaxis": _WALL, "yaxis": _WALL, "zaxis": _WALL}}
# fmt: on


def grid(
    names: Iterable[str], kind: Literal["xy", "scene"], title: str, *, columns: int, row_height: int,
    narrow: int = 1, gap: float = 0.0, between: int = 84, sides: int = 64, foot: int = 88,
) -> Figure:  # fmt: skip
    """Return empty panels with the shared template; ``between`` rows, at the ``sides`` and at the ``foot`` are pixels.

    ``layout.meta["narrow"]`` and ``["wide"]`` hold the layout keys that move the panels into ``narrow`` columns and
    back: a page hands the one that fits to ``Plotly.relayout``.
    """
    from plotly.subplots import make_subplots

    titles = [f"<b>{text(name)}</b>" if name else " " for name in names] or [" "]
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
    figure.update_layout(template={"layout": _LAYOUT}, title_text=text(title), margin=margin)
    return figure.update_layout(height=wide["height"], meta={"wide": wide, "narrow": stacked})


def show_each_name_once(figure: Figure) -> None:
    """Leave one legend entry for each legend group: its first trace that is not a band."""
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is not False:
            trace.showlegend = trace.legendgroup not in seen
            seen.add(trace.legendgroup)
    figure.update_layout(showlegend=len(seen) > 0)


def compact(values: ArrayLike, *, positive: bool = False) -> NDArray[Any]:
    """Return float32 where its range holds the values; integers stay; what cannot be drawn is NaN."""
    array = np.asarray(values)
    if array.dtype.kind in "iu" and not positive:
        return array
    array = array.astype(np.float64)
    array[~np.isfinite(array) | (positive & (array <= 0))] = np.nan
    sizes, limits = np.abs(array[array != 0]), np.finfo(np.float32)
    return array.astype(np.float32) if not np.any((sizes < limits.tiny) | (sizes > limits.max)) else array


def text(text: str) -> str:
    """Return text that plotly, which reads a little HTML, shows as it stands."""
    return html.escape(str(text), quote=False)
