"""The page: results and figures in, one HTML file out that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lowdyn.files import replace_atomically
from lowdyn.report.results import Result, is_simple_name, read_results

if TYPE_CHECKING:
    from markupsafe import Markup

VERDICTS = {"holds": "holds", "fails": "does not hold", "cannot": "cannot be judged", "error": "error"}


@dataclass(frozen=True)
class Link:
    """A file beside the page: ``href`` is None when the file is not there."""

    text: str
    href: str | None
    size: str = ""


@dataclass(frozen=True)
class Section:
    """A result with what its section shows: ``figure`` is JSON fit for a script element, ``problem`` a sentence."""

    result: Result
    anchor: str
    figure: str | None
    height: int
    problem: str | None
    links: tuple[Link, ...]


def write_report(folder: Path | str) -> Path:
    """Write ``folder/index.html`` from ``results.json`` and the figures beside it; return the path of the page.

    The page is one file: styles, scripts, plotly.js and all figures are inside, links to data files are relative,
    and its content policy forbids any request. It replaces the old page in one step: a reader never sees half of
    one. A figure that is missing or broken costs its section the picture, not the page.

    ValueError, in one line, when ``results.json`` is missing or does not hold results.

    >>> import json, tempfile
    >>> result = {"id": "C4", "claim": "It moves.", "title": "Motion", "scale": "smoke", "holds": True, "checks": []}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "results.json").write_text(json.dumps([result]))
    ...     page = write_report(folder).read_text()
    >>> page.count("It moves.")
    1
    """
    folder = Path(folder)
    page = render(read_results(folder / "results.json"), folder)
    target = folder / "index.html"
    replace_atomically(target, page.encode("utf-8", errors="replace"))
    return target


def render(results: list[Result], folder: Path) -> str:
    """Return the page as text. ``folder`` is where figures and data files are looked for."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": format_value, "duration": format_seconds, "prose": prose, "cells": _cells}
    scripts = {"plotly": get_plotlyjs(), "page": asset("page.js")}
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in VERDICTS}
    return environment.from_string(asset("page.html")).render(
        sections=[_section(result, place, folder) for place, result in enumerate(results, start=1)],
        verdicts=VERDICTS,
        counts=counts,
        scales=sorted({result.scale for result in results}),
        seconds=sum(result.seconds or 0.0 for result in results),
        machine=_shared(result.machine for result in results),
        versions=_shared(result.versions for result in results),
        style=Markup(asset("page.css")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=Markup(" ".join(map(_hash, scripts.values()))),
    )


def format_number(value: float | None) -> str:
    """Return a number as a reader wants it: four digits, whole numbers in full, small ones as 1e-12.

    >>> [format_number(x) for x in (0.0123456, 4.57e-4, 1e-12, 20123, 9594010.0, float("nan"), None, True)]
    ['0.01235', '4.57e-4', '1e-12', '20\\u202f123', '9\\u202f594\\u202f010', 'NaN', '–', 'yes']
    """
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    if size < 1e15 and (value == int(value) or 1e4 <= size < 1e7):
        return f"{value:,.0f}".replace(",", "\u202f") if size >= 9_999.5 else f"{value:.0f}"
    if 1e-3 <= size < 9_999.5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_seconds(seconds: float | None) -> str:
    """Return a time as a reader says it.

    >>> [format_seconds(s) for s in (0.012, 14.83, 200, 7500, None)]
    ['0.0 s', '14.8 s', '3 min 20 s', '2 h 05 min', '–']
    """
    if seconds is None or not math.isfinite(seconds):
        return format_number(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_value(value: Any) -> str:
    """Return any JSON value as one line of text; of a long list its ends.

    >>> format_value([1, 0.25, "x"]), format_value({"sizes": [2, 3]})
    ('1, 0.25, x', 'sizes: 2, 3')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_value(item)}" for key, item in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        items = [f"({format_value(item)})" if isinstance(item, list) else format_value(item) for item in value]
        if len(items) > 12:
            items = [*items[:6], "…", *items[-2:]]
            return f"{', '.join(items)} ({len(value)} values)"
        return ", ".join(items) or "–"
    return format_number(value)


def _section(result: Result, place: int, folder: Path) -> Section:
    """Return a result with its figure and its links. A name that is not simple never becomes part of a path."""
    links, figure, height, problem = [], None, 0, None
    if is_simple_name(result.id):
        anchor, path = result.id, folder / result.id / "figure.json"
        figure, height, problem = _figure(path)
        if path.is_file():
            links.append(_link(path, folder))
    else:
        anchor, problem = f"claim-{place}", "The id of this claim is not a simple name: no figure is looked for."
    for name in result.experiments:
        found = sorted((folder / name).glob("*.nc")) if is_simple_name(name) else []
        links += [_link(path, folder) for path in found] or [Link(f"{name}: no trajectory here", None)]
    return Section(result, anchor, figure, height, problem, tuple(links))


def _figure(path: Path) -> tuple[str | None, int, str | None]:
    """Return (JSON fit for a script element, height in pixels, None) or (None, 0, what is wrong)."""
    try:
        # NaN and numbers out of range are not JSON; null is, and plotly draws it as a gap.
        text = path.read_text(encoding="utf-8")
        figure = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except FileNotFoundError:
        return None, 0, "There is no picture for this claim."
    except (OSError, ValueError, RecursionError) as error:
        return None, 0, f"The picture cannot be shown: figure.json is not readable as JSON ({error})."
    if not isinstance(figure, dict) or not isinstance(figure.get("data"), list):
        return None, 0, "The picture cannot be shown: figure.json does not hold a plotly figure."
    layout = figure["layout"] if isinstance(figure.get("layout"), dict) else {}
    height = layout.get("height")
    text = json.dumps({"data": figure["data"], "layout": layout}, separators=(",", ":"))
    return script_safe(text), int(height) if isinstance(height, int) and 0 < height < 10_000 else 450, None


def prose(text: str) -> Markup:
    """Return escaped text with subscripts (W_l, W_{L:1}) and superscripts (n^{1/L}) set as such.

    No line breaks inside a number such as 1e-12.

    >>> print(prose("D_{l+1} < 1e-3"))
    D<sub>l+1</sub> &lt; <span class="whole">1e-3</span>
    >>> print(prose("(4n)^{1/L}"))
    (4n)<sup>1/L</sup>
    """
    from markupsafe import Markup, escape

    safe = re.sub(r"\d[\d.]*e-\d+", r'<span class="whole">\g<0></span>', str(escape(text)), flags=re.ASCII)
    safe = re.sub(r"\^\{([^{}<>&]+)\}", r"<sup>\1</sup>", safe)
    # One letter before the underscore: names such as init_scale stay as they are.
    return Markup(re.sub(r"(?<!\w)([^\W\d_]\u0303?)_(?:\{([^{}<>&]+)\}|([^\W_]+))", r"\1<sub>\2\3</sub>", safe))


@dataclass(frozen=True)
class Cells:
    """Settings of the runs of an experiment: what all share, and a table of the rest."""

    common: Mapping[str, Any]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def _cells(settings: Any) -> Cells:
    """Return settings, one mapping or a list of them, split into what is common and what varies."""
    runs = settings if isinstance(settings, list) else [settings]
    if not runs or not all(isinstance(run, Mapping) for run in runs):
        return Cells({"settings": settings}, (), ())
    names = tuple(dict.fromkeys(name for run in runs for name in run))
    common = {name: runs[0][name] for name in names if all(name in run and run[name] == runs[0][name] for run in runs)}
    columns = tuple(name for name in names if name not in common)
    return Cells(common, columns, tuple(tuple(run.get(name) for name in columns) for run in runs) if columns else ())


def _finite(text: str) -> float | None:
    """Return the number that JSON spells out, None where a float cannot hold it."""
    value = float(text)
    return value if math.isfinite(value) else None


def script_safe(text: str) -> Markup:
    r"""Return JSON text in which nothing ends a script element or a line of JavaScript.

    >>> print(script_safe('"</script>&"'))
    "\u003c/script\u003e\u0026"
    """
    from markupsafe import Markup

    return Markup(text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}))


def _link(path: Path, folder: Path) -> Link:
    """Return a relative link to a file beside the page."""
    name = path.relative_to(folder).as_posix()
    size = path.stat().st_size / 1024
    return Link(name, quote(name), f"{size / 1024:.1f} MiB" if size >= 1024 else f"{max(1, round(size))} KiB")


def _shared(values: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return what all results agree on, else None."""
    values = list(values)
    return values[0] if values and all(value == values[0] for value in values) else None


def _hash(script: str) -> str:
    """Return the source expression that lets a content policy run this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def asset(name: str) -> str:
    """Return a file of this package as text."""
    return files("lowdyn.report").joinpath(name).read_text(encoding="utf-8")
