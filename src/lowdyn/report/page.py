"""The page: results and figures in, one HTML file out that asks nothing of the network."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lowdyn.files import replace_atomically
from lowdyn.report.formats import format_value, sentence
from lowdyn.report.frame import asset
from lowdyn.report.frame import render as render_frame
from lowdyn.report.results import SCALES, VERDICTS, Check, Result, is_simple_name, read_results, reason_in_words

if TYPE_CHECKING:
    from lowdyn.report.figures import Picture
    from lowdyn.report.measured import Comparison, Measured

OWN_DATA = ("", "digits")  # what is there without a data folder


@dataclass(frozen=True)
class Part:
    """A part of the page: the key that results name it by, its heading, and what it is about."""

    key: str
    title: str
    text: str


PARTS = (
    Part("see", "See", "what training does to features and weights: the lecture's introduction and its third part"),
    Part("predict", "Predict", "the law of parsimony, what theory fixes in advance: the lecture's first part"),
    Part("use", "Use", "training, compression and completion that follow from it: the lecture's second part"),
    Part("", "Other claims", "without a part"),
)


@dataclass(frozen=True)
class Link:
    """A file beside the page: ``href`` is None when the file is not there."""

    text: str
    href: str | None
    size: str = ""

    @property
    def holds_runs(self) -> bool:
        """Whether it leads to the numbers of an experiment."""
        return self.href is not None and self.href.endswith(".nc")


@dataclass(frozen=True)
class Section:
    """A result with what its section shows; ``problem`` is a sentence that stands for a picture that is not there."""

    result: Result
    anchor: str
    picture: Picture | None
    problem: str | None
    links: tuple[Link, ...]
    comparison: Comparison | None
    command: str


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
    from plotly.offline import get_plotlyjs

    from lowdyn.report.measured import read_measured

    measured = read_measured()
    sections = [
        _section(result, place, folder, measured.get(result.id, {})) for place, result in enumerate(results, start=1)
    ]
    known = {part.key for part in PARTS}
    places = [section.result.part if section.result.part in known else "" for section in sections]
    grouped = [(part, [one for one, key in zip(sections, places, strict=True) if key == part.key]) for part in PARTS]
    return render_frame(
        "page.html",
        style="claims.css",
        scripts=(get_plotlyjs(), asset("plots.js"), asset("claims.js"), asset("data.js")),
        filters={"cells": _cells, "required": required, "outcome": outcome, "own": _own},
        sections=sections,
        parts=[(part, members) for part, members in grouped if members],
        verdicts=VERDICTS,
        counts={verdict: sum(result.verdict == verdict for result in results) for verdict in VERDICTS},
        scales={scale: SCALES.get(scale, "") for scale in sorted({result.scale for result in results})},
        seconds=computing_time(results),
        data=sorted({name for result in results for name in _data_names(result)}),
        machine=_shared(result.machine for result in results),
        versions=_shared(result.versions for result in results),
        compared={
            kind: [one for one in sections if one.comparison is not None and one.comparison.kind == kind]
            for kind in ("same", "differs", "unknown")
        },
    )


def computing_time(results: Iterable[Result]) -> float:
    """Return the seconds of all runs, made side by side or not; an experiment that claims share counts once.

    >>> one = Result("C5", "", "smoke", True, (), seconds=3.0, times={"own": 1.0, "shared": 2.0})
    >>> computing_time([one, Result("C7", "", "smoke", True, (), seconds=2.0, times={"shared": 2.0})])
    3.0
    """
    results = list(results)
    runs = {(name, seconds) for result in results for name, seconds in result.times.items()}
    return sum(seconds for _, seconds in runs) + sum(one.seconds or 0.0 for one in results if not one.times)


def required(check: Check) -> str:
    """Return what a check asks for, or what was published; "" for nothing.

    >>> required(Check("residual", 2e-13, 0, 1e-10, True)), required(Check("accuracy", 0.9, "—"))
    ('0 ± 1e-10', '')
    """
    text = format_value(check.expected)
    if text in ("—", "–"):
        return ""
    return f"{text} ± {format_value(check.tolerance)}" if _is_band(check) else text


def outcome(result: Result) -> str:
    """Return, in a sentence or a few, why a verdict is not "holds"; "" where it is.

    >>> outcome(Result("C1", "it falls", "smoke", False, (Check("largest ratio", 1.25, "< 1", None, False),)))
    'Of 1 judged number 1 misses: largest ratio came to 1.25, where < 1 is asked.'
    """
    if result.verdict == "holds":
        return ""
    missed = [check for check in result.checks if check.holds is False]
    if result.verdict != "fails" or not missed:
        return sentence(reason_in_words(result.reason))
    judged = sum(check.holds is not None for check in result.checks)
    misses = "; ".join(
        f"{check.text} came to {format_value(check.measured)}, where {required(check)} is asked" for check in missed
    )
    head = f"Of {judged} judged {'number' if judged == 1 else 'numbers'} {len(missed)}"
    return sentence(f"{head} {'misses' if len(missed) == 1 else 'miss'}: {misses}")


def _is_band(check: Check) -> bool:
    return check.tolerance is not None and isinstance(check.expected, (int, float))


def _section(result: Result, place: int, folder: Path, measured: Mapping[str, Measured]) -> Section:
    """Return a result with its figure and its links. A name that is not simple never becomes part of a path."""
    from lowdyn.report.figures import read_picture  # NumPy, only where a page is written
    from lowdyn.report.measured import compare

    picture, problem, anchor, links = None, None, f"claim-{place}", []
    if is_simple_name(result.id):
        anchor = result.id
        try:
            picture = read_picture(folder / result.id / "figure.json")
        except ValueError as error:
            problem = str(error)
        if (folder / result.id / "figure.json").is_file():
            links.append(_link(folder / result.id / "figure.json", folder))
    else:
        problem = "The id of this claim is not a simple name: no figure is looked for."
    for name in result.experiments:
        found = sorted((folder / name).glob("*.nc")) if is_simple_name(name) else []
        links += [_link(path, folder) for path in found] or [Link(f"{name}: no trajectory here", None)]
    comparison = compare(result, measured)
    return Section(result, anchor, picture, problem, tuple(links), comparison, _command(result))


def _command(result: Result) -> str:
    """Return the command line that runs a claim again."""
    words = ["lowdyn", "reproduce", result.id, "--scale", result.scale]
    first = min(result.seeds, default=0)
    words += ["--seed", str(first)] if first else []
    if set(_data_names(result)) - set(OWN_DATA):
        words += ["--data-dir", "FOLDER"]
    return shlex.join(words)


def _data_names(result: Result) -> list[str]:
    name = (result.data or {}).get("name")
    return name.split(" + ") if isinstance(name, str) else []


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


def _link(path: Path, folder: Path) -> Link:
    """Return a relative link to a file beside the page."""
    name = path.relative_to(folder).as_posix()
    size = path.stat().st_size / 1024
    return Link(name, quote(name), f"{size / 1024:.1f} MiB" if size >= 1024 else f"{max(1, round(size))} KiB")


def _own(values: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the items that are not those which all results share."""
    return {name: value for name, value in values.items() if name not in shared}


def _shared(values: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the items that all results agree on.

    >>> _shared([{"cores": 2, "threads": 1}, {"cores": 2, "threads": 2}])
    {'cores': 2}
    """
    first, *others = [*values] or [{}]
    return {name: value for name, value in first.items() if all(name in one and one[name] == value for one in others)}
