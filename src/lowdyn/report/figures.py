"""A claim's figure, read from its file: the JSON that the page draws, and in words what it shows."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowdyn.report.formats import format_number, listed, script_safe

_MOST = 12  # series in words; the download has them all


@dataclass(frozen=True)
class Picture:
    """A figure fit for the page.

    ``text``: JSON for a script element. ``height``: pixels. ``summary``: one sentence that says what is drawn.
    ``details``: a sentence for each line or surface.
    """

    text: str
    height: int
    summary: str
    details: tuple[str, ...]


def read_picture(path: Path) -> Picture:
    """Return the figure of a file; ValueError, one sentence for the reader, when there is none that can be shown."""
    try:
        # NaN and numbers out of range are not JSON; null is, and plotly draws it as a gap.
        text = path.read_text(encoding="utf-8")
        figure = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except FileNotFoundError:
        raise ValueError("There is no picture for this claim.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"The picture cannot be shown: figure.json is not readable as JSON ({error}).") from None
    if not isinstance(figure, dict) or not isinstance(figure.get("data"), list):
        raise ValueError("The picture cannot be shown: figure.json does not hold a plotly figure.")
    layout = figure["layout"] if isinstance(figure.get("layout"), dict) else {}
    height = layout.get("height")
    summary, details = describe(figure["data"], layout)
    text = json.dumps({"data": figure["data"], "layout": layout}, separators=(",", ":"))
    wanted = int(height) if isinstance(height, int) and 0 < height < 10_000 else 450
    return Picture(script_safe(text), wanted, summary, details)


def describe(data: list[Any], layout: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return what a figure draws: a sentence, and one for each line or surface.

    >>> line = {"type": "scatter", "mode": "lines", "name": "depth 3", "x": [0, 10], "y": [1.0, 0.001]}
    >>> axes = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "error"}, "type": "log"}}
    >>> describe([line], axes)
    ('Line of error (logarithmic) against step: depth 3.', ('depth 3: from 1 at 0 to 0.001 at 10.',))
    """
    try:
        traces = [trace for trace in data if isinstance(trace, dict)]
        if any(trace.get("type") == "surface" for trace in traces):
            return _surfaces(traces, layout)
        lines = [trace for trace in traces if trace.get("mode") != "none"]
        if lines and all(trace.get("mode") == "markers" and trace.get("hoverinfo") == "name" for trace in lines):
            return _points(lines, layout)
        return _lines(lines, traces, layout)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError):
        # A figure that is not one of lowdyn's may be anything; plotly may still know how to draw it.
        return f"A picture of {len(data)} {'part' if len(data) == 1 else 'parts'}.", ()


def values_of(array: Any) -> NDArray[np.float64]:
    """Return an array of a plotly figure, a list or packed as base64, as numbers; NaN where there is none.

    >>> values_of({"dtype": "i1", "bdata": "AQI="})
    array([1., 2.])
    """
    if not isinstance(array, dict):
        return np.array(array, dtype=np.float64)
    values = np.frombuffer(base64.b64decode(array["bdata"]), dtype=np.dtype(array["dtype"]).newbyteorder("<"))
    shape = [int(part) for part in str(array.get("shape", values.size)).split(",")]
    return values.reshape(shape).astype(np.float64)


def _lines(
    lines: list[dict[str, Any]], traces: list[dict[str, Any]], layout: Mapping[str, Any]
) -> tuple[str, tuple[str, ...]]:
    panels = _panels(layout)
    names = list(dict.fromkeys(_plain(trace.get("name", "")) for trace in lines))
    drawn = sorted({_place(trace, "yaxis", "y") for trace in lines})
    text = _axes(layout, panels, drawn)
    spread = any("error_y" in trace or trace.get("mode") == "none" for trace in traces)
    kind = "Line" if any("lines" in str(trace.get("mode", "lines")) for trace in lines) else "Point"
    summary = f"{kind if len(lines) == 1 else kind + 's'} of {text}: {listed(names, _MOST)}."
    if spread:
        summary += " Bands and bars show the spread over runs."
    details = []
    for trace in lines:
        x, y = values_of(trace["x"]), values_of(trace["y"])
        known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        panel = panels[_place(trace, "yaxis", "y") - 1] if len(panels) > 1 else ""
        name = ", ".join(filter(None, (panel, _plain(trace.get("name", "")))))
        if len(known) == 0:
            details.append(f"{name}: no values.")
            continue
        (x0, x1), (y0, y1) = ([format_number(part[k]) for k in (known[0], known[-1])] for part in (x, y))
        details.append(f"{name}: from {y0} at {x0} to {y1} at {x1}." if len(known) > 1 else f"{name}: {y0} at {x0}.")
    return summary, tuple(details)


def _axes(layout: Mapping[str, Any], panels: list[str], drawn: list[int]) -> str:
    """Return what is drawn against what, over all panels."""
    titles = {(axis, place): _title(layout, axis, place) for axis in "xy" for place in drawn}
    against = list(dict.fromkeys(titles["x", place] for place in drawn))
    label = next((titles["y", place] for place in drawn if titles["y", place]), "")
    logs = {place for place in drawn if layout.get(_key("yaxis", place), {}).get("type") == "log"}
    if label:
        what = f"{label} (logarithmic)" if logs == set(drawn) else label
        where = f" in {len(drawn)} panels, {listed([panels[place - 1] for place in drawn])}" if len(drawn) > 1 else ""
    else:
        what = listed([panels[k - 1] + (" (logarithmic)" if k in logs else "") for k in drawn]) if panels else "values"
        where = f", {len(drawn)} panels" if len(drawn) > 1 else ""
    return f"{what} against {listed(against) or 'its place'}{where}"


def _surfaces(traces: list[dict[str, Any]], layout: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    panels = _panels(layout)
    details = []
    for trace in traces:
        steps, z = values_of(trace["y"]), values_of(trace["z"])
        known = np.flatnonzero(np.isfinite(z).any(axis=1))
        ends = [
            f"at step {format_number(steps[k])} between {format_number(np.nanmin(z[k]))} and "
            f"{format_number(np.nanmax(z[k]))}"
            for k in known[[0, -1]]
        ]
        place = _place(trace, "scene", "scene")
        details.append(f"{panels[place - 1] if place <= len(panels) else 'values'}: {', '.join(ends)}.")
    count = "Surface" if len(traces) == 1 else f"{len(traces)} surfaces"
    return f"{count} over index and step: {listed(panels)}.", tuple(details)


def _points(lines: list[dict[str, Any]], layout: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    panels = _panels(layout)
    names = list(dict.fromkeys(_plain(trace.get("name", "")) for trace in lines))
    count = sum(len(values_of(trace["x"])) for trace in lines if _place(trace, "yaxis", "y") == 1)
    where = f" in {len(panels)} panels, {panels[0]} to {panels[-1]}" if len(panels) > 1 else ""
    return f"{count} points in two dimensions{where}, coloured by class: {listed(names)}.", ()


def _panels(layout: Mapping[str, Any]) -> list[str]:
    """Return the titles above the panels, in their order."""
    return [_plain(note.get("text", "")) for note in layout.get("annotations", ())]


def _place(trace: Mapping[str, Any], name: str, prefix: str) -> int:
    """Return the number of a trace's panel, from 1 on."""
    return int(str(trace.get(name, prefix)).removeprefix(prefix) or 1)


def _key(axis: str, place: int) -> str:
    return axis if place == 1 else f"{axis}{place}"


def _title(layout: Mapping[str, Any], axis: str, place: int) -> str:
    return _plain(layout.get(_key(f"{axis}axis", place), {}).get("title", {}).get("text", ""))


def _plain(text: str) -> str:
    """Return a plotly text without its markup."""
    return html.unescape(re.sub(r"</?(b|i|sub|sup|br)/?>", "", str(text))).strip()


def _finite(text: str) -> float | None:
    """Return the number that JSON spells out, None where a float cannot hold it."""
    value = float(text)
    return value if math.isfinite(value) else None
