"""The page of ``lowdyn inspect``: a table of spectra with a small picture each, one HTML file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdyn.files import replace_atomically
from lowdyn.report.formats import format_number
from lowdyn.report.frame import render as render_frame

if TYPE_CHECKING:
    from markupsafe import Markup

DECADES = 4  # of the pictures: from the largest singular value down to 1e-4 of it
_POINTS = 160


def write_spectra(inspection: Any, path: Path | str) -> Path:
    """Write the page of an ``Inspection`` to ``path``, replacing it in one step; return the path.

    The page holds everything it shows and asks nothing of the network; its one script switches light and dark. Every
    name is escaped.

    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> from lowdyn.inspection import inspect_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"fc.weight": torch.eye(4)}, f"{folder}/model.safetensors")
    ...     page = write_spectra(inspect_weights(f"{folder}/model.safetensors"), f"{folder}/page.html")
    ...     "fc" in page.read_text(encoding="utf-8")
    True
    """
    path = Path(path)
    replace_atomically(path, render(inspection).encode("utf-8", errors="replace"))
    return path


def render(inspection: Any) -> str:
    """Return the page as text."""
    filters: dict[str, Callable[..., Any]] = {"size": format_shape, "percent": format_share, "share": factored_share}
    return render_frame(
        "spectra.html",
        style="spectra.css",
        filters={**filters, "drawn": polyline, "broken": broken, "spoken": spoken},
        inspection=inspection,
        layers=inspection.layers,
        totals=totals(inspection.layers),
        deepest=DECADES,
    )


def factored_share(layer: Any) -> float:
    """Return r(m + n)/(m n), what a matrix needs as a pair of factors of its advised rank; at most 1."""
    rows, columns = layer.shape
    spectrum = layer.weight if layer.update is None else layer.update
    return min(1.0, spectrum.advised_rank * (rows + columns) / (rows * columns))


def totals(layers: Sequence[Any]) -> dict[str, float]:
    """Return what the page says of all layers together.

    ``weights``: how many; ``change``: ‖W − W_0‖/‖W_0‖ over all that have a reference; ``share`` of their parameters
    that factors of the advised ranks take.
    """
    compared = [layer for layer in layers if layer.update is not None] or list(layers)
    sizes = [math.prod(layer.shape) for layer in compared]
    added = sum(layer.update.norm**2 for layer in compared if layer.update is not None)
    # ‖W_0‖ is ‖W‖ where nothing changed, and 0 where the change is infinite.
    starts = [layer.update.norm / layer.change if layer.change else layer.weight.norm for layer in compared]
    before = sum(norm**2 for norm in starts)
    factored = sum(factored_share(layer) * size for layer, size in zip(compared, sizes, strict=True))
    return {
        "weights": sum(math.prod(layer.shape) for layer in layers),
        "change": math.sqrt(added / before) if before else 0.0,
        "share": factored / sum(sizes),
    }


def format_shape(shape: Iterable[int]) -> str:
    """Return a shape as a reader writes it.

    >>> format_shape((64, 27))
    '64 × 27'
    """
    return " × ".join(map(str, shape))


def format_share(share: float | None) -> str:
    """Return a share in percent, with two digits below ten and as many above as are not zero.

    >>> [format_share(share) for share in (None, 0.5, 0.02, 0.00012, 1.0, 0.999, math.inf)]
    ['–', '50 %', '2.0 %', '0.012 %', '100 %', '99.9 %', '∞']
    """
    if share is None or not math.isfinite(share):
        return format_number(share)
    percent = 100 * share
    if percent >= 9.95 or percent == 0:
        return f"{percent:.4g} %" if percent > 99 else f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.995 else f"{percent:.2g} %"


def broken(name: str) -> Markup:
    """Return an escaped name that may be broken after its dots.

    >>> print(broken("layer.0<b>"))
    layer.<wbr>0&lt;b&gt;
    """
    from markupsafe import Markup, escape

    return escape(name).replace(".", Markup(".<wbr>"))


def spoken(layer: Any) -> str:
    """Return what the small picture of a layer shows, in words.

    >>> from types import SimpleNamespace as Layer
    >>> spoken(Layer(name="fc", weight=Layer(values=[2.0, 1.0, 0.02]), update=None))
    'Spectrum of fc: 3 singular values of the weight fall from 2 to 0.02.'
    """
    parts = {"weight": layer.weight, "change": layer.update}
    lines = [
        f"{len(one.values)} singular values of the {name} fall from {format_number(float(one.values[0]))} to "
        f"{format_number(float(one.values[-1]))}"
        for name, one in parts.items()
        if one is not None and len(one.values)
    ]
    return f"Spectrum of {layer.name}: {'; '.join(lines) or 'no values'}."


def polyline(values: Sequence[float], width: int, height: int) -> str:
    """Return the points of a line for a spectrum: index from left to right, log(σ_i/σ_1) from top to bottom.

    >>> polyline([1.0, 0.01], 100, 40)
    '0,0 100,20'
    """
    count = len(values)
    largest = float(values[0]) if count else 0.0
    if largest <= 0:
        return ""
    # Every index at the top, where spectra bend; evenly spaced further on.
    places = sorted({round(place * (count - 1) / _POINTS) for place in range(_POINTS + 1)} | set(range(min(count, 32))))
    points = []
    for place in places:
        ratio = float(values[place]) / largest
        depth = DECADES if ratio <= 0 else min(DECADES, -math.log10(ratio))
        x, y = width * place / max(1, count - 1), height * depth / DECADES
        points.append(f"{round(x, 1):g},{round(y, 1) + 0.0:g}")
        if depth == DECADES:
            break  # what follows would lie on the axis
    return " ".join(points)
