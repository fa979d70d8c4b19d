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
    """Return a table of an ``Inspection``: one line a layer, the change beside the weight where there is one."""
    from rich.table import Table
    from rich.text import Text

    compared = inspection.reference is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold", min_width=12)
    columns = ["shape", "norm", "stable rank", "effective rank"]
    columns += ["change", "its rank", "its stable rank"] if compared else ["rank"]
    for name in [*columns, f"rank for {format_share(inspection.energy)}", "of its parameters"]:
        table.add_column(name, justify="right", overflow="fold")
    for layer in inspection.layers:
        weight, update = layer.weight, layer.update
        cells = [format_shape(layer.shape), *_plain(weight.norm, weight.stable_rank, weight.effective_rank)]
        if not compared:
            cells.append(str(weight.rank))
        elif update is not None:
            cells += [format_share(layer.change), str(update.rank), *_plain(update.stable_rank)]
        main = update if compared else weight
        if main is None:
            cells += ["–"] * 5
        else:
            cells += [str(main.advised_rank), format_share(factored_share(layer))]
        table.add_row(Text(_printable(layer.name)), *cells)
    return table


def _plain(*values: float) -> list[str]:
    return [format_number(value) for value in values]


def _printable(name: str) -> str:
    """Return a name in which nothing commands the terminal."""
    return name if name.isprintable() else ascii(name)[1:-1]
