"""The command ``lowdyn``: reproduce, list, report, inspect, complete. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

try:
    import typer
except ModuleNotFoundError as error:  # pragma: no cover - needs an installation without the extra
    raise SystemExit("the command lowdyn needs the extra: pip install 'lowdyn[reproduce]'") from error

from lowdyn.report.results import VERDICTS, Scale, reason_in_words, verdict_of

if TYPE_CHECKING:
    from lowdyn.claims.claim import Claim

T = TypeVar("T")
app = typer.Typer(
    help="Low-dimensional learning dynamics of deep networks: run the claims of the lecture and judge them; "
    "inspect the weights of any model.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

NAMES = VERDICTS | {"cannot": "cannot"}  # the column is as wide as "does not hold"
STYLES = {"holds": "green", "fails": "yellow", "cannot": "cyan", "error": "red"}


def _version(asked: bool) -> None:
    if asked:
        from lowdyn import __version__

        typer.echo(f"lowdyn {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def reproduce(
    ids: Annotated[list[str] | None, typer.Argument(help="Claims such as C4 C17; all of them by default.")] = None,
    scale: Annotated[
        Scale, typer.Option(help="Seconds, about a minute, or the published settings a claim.")
    ] = Scale.quick,
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("lowdyn-report"),
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="First random seed.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="LOWDYN_DATA", help="Folder with data sets (mnist/, cifar10/, …).")
    ] = None,
    download: Annotated[bool, typer.Option(help="Fetch a missing data set into --data-dir.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 also when a claim does not hold.")] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that share the runs, and the cores, of this machine.")
    ] = 1,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler whose workers make the runs: tcp://HOST:8786.")
    ] = None,
) -> None:
    """Run claims, judge them, write results, pictures and one report page. What is complete is not run again."""
    if download and data_dir is None:
        _refuse("--download needs --data-dir, the folder that the data set goes into")
    if data_dir is not None and not data_dir.is_dir() and not download:
        _refuse(f"the data folder {data_dir} does not exist; make it, or leave --data-dir (LOWDYN_DATA) out")
    from lowdyn.claims.claim import all_claims
    from lowdyn.report import write_report
    from lowdyn.report.results import read_results
    from lowdyn.runner import DaskCluster, Folder, Processes, Reproduction, RunStopped

    claims = _chosen(ids, all_claims())
    if cluster is not None and jobs > 1:
        _refuse("--jobs is for this machine and --cluster for others; pass one of them")
    pool: AbstractContextManager[Any] = nullcontext(Processes(jobs, data_dir) if jobs > 1 else None)
    if cluster is not None:
        pool = DaskCluster.open(cluster, data_dir)
    try:
        with pool as made_in, Folder.open(out) as folder:
            if (out / "results.json").exists():
                read_results(out / "results.json")  # what the page could not show is refused before anything runs
            run = Reproduction(folder, scale.value, seed, data_dir, download)
            entries = _run_all(run, claims, made_in)
            with folder.writing():
                page = write_report(folder.path)
    except RunStopped as error:
        _refuse(str(error), status=1)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    typer.echo(f"\nreport: {page.resolve()}")
    verdicts = {verdict_of(entry["holds"], entry["reason"]) for entry in entries}
    if "error" in verdicts or (strict and "fails" in verdicts):
        raise typer.Exit(1)


def _run_all(run: Any, claims: list[Claim], pool: Any) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    entries = []
    with Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("claims", total=len(claims))
        runs = progress.add_task("runs", total=None, visible=pool is not None)
        with closing(
            run.ready(claims, pool, lambda done, all: progress.update(runs, completed=done, total=all))
        ) as ready:
            for claim in ready:
                task = progress.add_task(f"{claim.ID} {claim.TITLE}", total=None)
                entry = run.judge(claim, lambda done, all, task=task: progress.update(task, completed=done, total=all))
                progress.remove_task(task)
                progress.advance(whole)
                entries.append(entry)
                console.print(_line(entry), markup=False, style=None)
    return entries


def _line(entry: dict[str, Any]) -> Any:
    from rich.text import Text

    verdict, reason = verdict_of(entry["holds"], entry["reason"]), reason_in_words(entry["reason"])
    text = Text(f"{entry['id']:<4} ").append(f"{NAMES[verdict]:<14}", style=STYLES[verdict])
    text.append(f"{entry['title']}  ({entry['seconds']:.1f} s)")
    return text.append(f"\n     {reason}", style="dim") if reason else text


def _chosen(ids: list[str] | None, claims: Mapping[str, T]) -> list[T]:
    """Return the claims of these ids in their order, all without any; an id that is none ends the command."""
    wanted = {one.upper() for one in ids or claims}
    if unknown := sorted(wanted - claims.keys()):
        _refuse(f"unknown claim {', '.join(unknown)}; known are {', '.join(claims)}")
    return [claim for name, claim in claims.items() if name in wanted]


def _refuse(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"lowdyn: {message}", err=True)
    raise typer.Exit(status)


@app.command("list")
def list_claims(
    ids: Annotated[list[str] | None, typer.Argument(help="Claims such as C4 C17, each said in full.")] = None,
) -> None:
    """List the claims with the times measured, or estimated, at each scale; given ids, say those claims in full."""
    from lowdyn.claims.catalogue import catalogue
    from lowdyn.report.measured import read_measured
    from lowdyn.report.table import claim_in_full, claims_legend, claims_table, open_console

    claims, measured, console = catalogue(), read_measured(), open_console()
    if not ids:
        console.print(claims_table(claims.values(), measured))
        console.print(claims_legend(measured), style="dim", markup=False)
        return
    for claim in _chosen(ids, claims):
        console.print(claim_in_full(claim, measured.get(claim.id, {})), markup=False, soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that reproduce wrote.")]) -> None:
    """Write the report page of a folder anew from the results in it."""
    from lowdyn.report import write_report

    try:
        page = write_report(folder)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    typer.echo(f"report: {page.resolve()}")


@app.command()
def complete(
    ratings: Annotated[Path, typer.Argument(metavar="RATINGS.CSV", help="Ratings; the first line names the columns.")],
    predict: Annotated[Path, typer.Option(help="CSV file with the pairs to predict.")],
    out: Annotated[Path, typer.Option(help="CSV file to write: user, item, prediction.")],
    user: Annotated[str, typer.Option(help="Name of the column of users (rows).")] = "user",
    item: Annotated[str, typer.Option(help="Name of the column of items (columns).")] = "item",
    rating: Annotated[str, typer.Option(help="Name of the column of ratings.")] = "rating",
    delimiter: Annotated[str, typer.Option(help="One character between fields.")] = ",",
    rank: Annotated[int, typer.Option(min=1, help="Ceiling of the rank.")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")] = 0,
) -> None:
    """Predict missing ratings from those of a CSV file, by a deep factorization with biases."""
    if len(delimiter) != 1:
        _refuse(f"--delimiter must be one character, got {delimiter!r}")
    if len({user, item, rating}) < 3:
        _refuse(f"--user, --item and --rating must name three columns, got {user!r}, {item!r} and {rating!r}")
    for path in (ratings, predict):
        if not path.is_file():
            _refuse(f"there is no file {path}")
    if out.is_dir() or (out.exists() and any(out.samefile(path) for path in (ratings, predict))):
        _refuse(f"--out {out} is a folder or one of the files read; pass another")
    from lowdyn.ratings_csv import predict_pairs, read_ratings
    from lowdyn.recovery import DeepMatrixCompletion
    from lowdyn.report.waiting import fitting, reading

    try:
        with reading(f"reading {ratings.name}") as advance:
            matrix, *ids = read_ratings(ratings, (user, item, rating), delimiter, advance)
        typer.echo(f"{matrix.nnz} ratings, {matrix.shape[0]} users, {matrix.shape[1]} items")
        with fitting() as on_iteration:
            model = DeepMatrixCompletion(rank, random_state=seed).fit(matrix, on_iteration=on_iteration)
        errors = model.validation_curve_
        error = f"{errors.min():.4f}" if errors.size else "unknown (too few ratings to hold any out)"
        typer.echo(f"validation RMSE {error}, rank {model.rank_}, {model.n_iter_} iterations")
        with reading(f"predicting {predict.name}") as advance:
            count = predict_pairs(model, (ids[0], ids[1]), predict, (user, item), out, delimiter, advance)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    typer.echo(f"{count} predictions: {out}")


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="Weights: a safetensors file, a folder of shards, a torch state_dict.")],
    reference: Annotated[
        Path | None, typer.Option(help="Weights before training; the change W - W_0 is shown as well.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML page to write, one file.")] = None,
    layers: Annotated[str | None, typer.Option(help="Only layers in whose name this pattern is found.")] = None,
    energy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the energy that the advised rank holds.")
    ] = 0.99,
) -> None:
    """Show the spectra of a checkpoint on disk, layer by layer; nothing in it is executed."""
    from lowdyn.inspection import inspect_weights
    from lowdyn.report import write_spectra
    from lowdyn.report.formats import printable
    from lowdyn.report.table import open_console, spectra_legend, spectra_table

    console = open_console()
    try:
        with console.status("opening") as status:

            def on_layer(number: int, count: int, name: str) -> None:
                status.update(f"{number} of {count}")

            found = inspect_weights(model, reference, layers=layers, energy=energy, on_layer=on_layer)
        console.print(spectra_table(found))
        for note in (spectra_legend(found), *found.notes):
            console.print(printable(note), style="dim", markup=False)
        if out is not None:
            typer.echo(f"page: {write_spectra(found, out).resolve()}")
    except (ValueError, OSError) as error:
        _refuse(printable(" ".join(str(error).split())))


def main() -> None:
    """Run the command."""
    # Threads that wait by spinning slow each other down as soon as anything else runs; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek costs a letter, not the run
    app()


if __name__ == "__main__":
    main()
