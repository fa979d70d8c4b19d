"""The tables of ``lowdyn inspect`` and ``lowdyn list`` in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lowdyn.report.formats import format_number, printable
from lowdyn.report.measured import Measured
from lowdyn.report.results import SCALES
from lowdyn.report.spectra import factored_share, format_shape, format_share

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 160  # columns where there is no terminal: nothing is cut


def open_console() -> Console:
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


def claims_table(claims: Iterable[Any], measured: Mapping[str, Mapping[str, Measured]]) -> Table:
    """Return a table of claims, a line each: part, title, and time and verdict at each scale, as far as known."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("claim", "part", "title"):
        table.add_column(name, no_wrap=name != "title")
    for scale in SCALES:
        table.add_column(scale, justify="right", no_wrap=True)
        table.add_column("")
    for claim in claims:
        runs = measured.get(claim.id, {})
        cells = [cell for scale in SCALES for cell in _run_cells(runs.get(scale))]
        table.add_row(claim.id, claim.part, claim.title, *cells)
    return table


def claims_legend(measured: Mapping[str, Mapping[str, Measured]]) -> str:
    """Return where the times of the table come from, and which are estimates, in one sentence or two."""
    known = [run for runs in measured.values() for run in runs.values()]
    machines, guessed = (
        "; ".join(sorted({run.machine for run in known if (run.holds is None) == estimate}))
        for estimate in (False, True)
    )
    text = f"Times and verdicts as measured ({machines or 'nowhere yet'}); "
    if guessed:
        text += f"≈ a time estimated from shortened runs by `python benchmarks/estimates.py` ({guessed}), no verdict; "
    return f"{text}— where neither. `lowdyn list C4` says a claim in full."


def claim_in_full(claim: Any, runs: Mapping[str, Measured]) -> str:
    """Return all that is said of a claim, as paragraphs."""
    lines = [f"{claim.id}  {claim.title} ({claim.part})", claim.claim]
    lines += [f"Source: {claim.source}", f"Published: {claim.published}", f"Departures: {claim.deviation}"]
    lines += [f"Differences: {claim.difference}"] if claim.difference else []
    lines += [f"Scales: {claim.scale_note}"] if claim.scale_note else []
    for scale in SCALES:
        run = runs.get(scale)
        lines.append(f"{scale}: {_run_in_full(run)}")
    return "\n     ".join(lines)


def _run_cells(run: Measured | None) -> tuple[str, str]:
    return ("—", "") if run is None else (run.time, run.verdict)


def _run_in_full(run: Measured | None) -> str:
    if run is None:
        return "—"
    where = f"{run.data or 'no data'}; {run.machine}"
    return (
        f"{run.time}, not run: from {run.how} ({where})"
        if run.holds is None
        else f"{run.time}, {run.verdict} ({where})"
    )
