"""The table of ``lowdyn inspect`` in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdyn.report.page import format_number
from lowdyn.report.spectra import factored_share, format_shape, format_share

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 160  # columns where there is no terminal: nothing is cut


def spectra_console() -> Console:
    """Return a console that shows what it is doing on a terminal, and plain text in a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def spectra_table(inspection: Any) -> Table:
    """Return a table of an ``Inspection``, a line a layer: of the change where there is a reference, else of W."""
    from rich.table import Table
    from rich.text import Text

    compared = inspection.reference is not None
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold", min_width=16)
    kinds = ["change", "rank", "stable"] if compared else ["norm", "rank", "stable", "effective"]
    for name in ["shape", *kinds, format_share(inspection.energy).replace(" ", ""), "params"]:
        table.add_column(name, justify="right", no_wrap=True)
    for layer in inspection.layers:
        main = layer.update if compared else layer.weight
        cells = [format_shape(layer.shape).replace(" ", "")]
        if main is None:
            cells += ["–"] * 5
        else:
            cells.append(format_share(layer.change) if compared else format_number(main.norm))
            cells += [str(main.rank), format_number(main.stable_rank)]
            cells += [] if compared else [format_number(main.effective_rank)]
            cells += [str(main.advised_rank), format_share(factored_share(layer))]
        table.add_row(Text(printable(layer.name)), *cells)
    return table


def spectra_legend(inspection: Any) -> str:
    """Return what the columns of the table are, in one sentence."""
    share = format_share(inspection.energy).replace(" ", "")
    first, kinds = "norm: ‖W‖_F", "rank, stable, effective: kinds of rank of W"
    if inspection.reference is not None:
        first, kinds = "change: ‖W − W_0‖ / ‖W_0‖", "rank, stable: kinds of rank of W − W_0"
    last = (
        f"{share}: the rank that holds {share} of its energy; params: of two factors of that rank, against the matrix"
    )
    return f"{first}; {kinds}; {last}"


def printable(text: str) -> str:
    r"""Return ``text`` in which nothing commands the terminal.

    >>> printable("layer\x1b[31m")
    'layer\\x1b[31m'
    """
    return text if text.isprintable() else ascii(text)[1:-1]
