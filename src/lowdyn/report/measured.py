"""What each claim took and came to at each scale, as measured, or would take: shipped as ``measured.json``.

``python -m lowdyn.report.measured RESULTS.JSON … [estimates.json]`` makes that file from kept results, one file for
each scale, and from the times that ``benchmarks/estimates.py`` estimates for paper scale where none was measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lowdyn.files import replace_atomically
from lowdyn.report.formats import format_estimate, format_seconds, sentence
from lowdyn.report.results import SCALES, VERDICTS, Result, Scale, read_results, verdict_of

_FILE = "measured.json"
_ESTIMATES = "estimates.json"


@dataclass(frozen=True)
class Measured:
    """One run of a claim: its time, its verdict, the data ("" where none are needed) and the machine.

    ``holds`` is None where the time is an estimate, and ``how`` says from what.
    """

    seconds: float
    holds: bool | None
    data: str
    machine: str
    how: str = ""

    @property
    def verdict(self) -> str:
        """Return whether it holds, in words; "" for an estimate."""
        return "" if self.holds is None else VERDICTS[verdict_of(self.holds, None)]

    @property
    def time(self) -> str:
        """Return the time in words."""
        return format_estimate(self.seconds) if self.holds is None else format_seconds(self.seconds)


def read_measured() -> dict[str, dict[str, Measured]]:
    """Return id -> scale -> what was measured; scales and claims that are not known are left out.

    >>> read_measured()["C4"]["smoke"].holds
    True
    """
    text = files("lowdyn.report").joinpath(_FILE).read_text(encoding="utf-8")
    return {name: {scale: Measured(**one) for scale, one in runs.items()} for name, runs in json.loads(text).items()}


def collect(
    results: Iterable[Result], estimates: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the content of ``measured.json``; a claim that could not be judged was not measured.

    ``estimates`` of the time at paper scale, by claim, count where nothing was measured there.
    ValueError when two results are of one claim at one scale, or a scale is not one of SCALES.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        if result.scale not in SCALES:
            raise ValueError(f"{result.id}: scale {result.scale!r} is not one of {', '.join(SCALES)}")
        if result.holds is None or result.seconds is None:
            continue
        runs = found.setdefault(result.id, {})
        if result.scale in runs:
            raise ValueError(f"{result.id} at {result.scale} scale occurs twice; pass one file for each scale")
        seconds = float(f"{result.seconds:.3g}")
        one = Measured(seconds, result.holds, describe_data(result.data), describe_machine(result.machine))
        runs[result.scale] = _entry(one)
    for name, given in (estimates or {}).items():
        data, where = describe_data(given["data"]), describe_machine(given["machine"])
        one = Measured(given["seconds"], None, data, where, given["how"])
        found.setdefault(name, {}).setdefault(Scale.paper, _entry(one))
    ordered = sorted(found.items(), key=lambda item: int("".join(filter(str.isdecimal, item[0])) or 0))
    return {name: {scale: runs[scale] for scale in SCALES if scale in runs} for name, runs in ordered}


def _entry(one: Measured) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name != "how" or value}


def describe_data(data: Mapping[str, Any] | None) -> str:
    """Return the data sets of a result in words, "" where it needs none.

    >>> describe_data({"name": "digits", "used": "500 of 1 797 images", "sha256": "00"})
    'digits, 500 of 1 797 images'
    """
    return ", ".join(str(data[key]) for key in ("name", "used") if data.get(key)) if data else ""


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Return the machine of a result in words.

    >>> describe_machine({"system": "Linux", "architecture": "x86_64", "cores": 2, "threads": 1, "accelerator": "none"})
    '2 cores, 1 thread, Linux x86_64'
    """
    counts = [
        f"{machine[name]} {name if machine[name] != 1 else name[:-1]}"
        for name in ("cores", "threads")
        if name in machine
    ]
    kind = " ".join(str(machine[name]) for name in ("system", "architecture") if name in machine)
    device = str(machine.get("accelerator", "none"))
    return ", ".join(filter(None, (*counts, kind, "" if device == "none" else device)))


@dataclass(frozen=True)
class Comparison:
    """A verdict held against the one measured at paper scale: ``kind`` is "same", "differs" or "unknown"."""

    kind: str
    text: str


def compare(result: Result, runs: Mapping[str, Measured]) -> Comparison | None:
    """Return how a verdict compares with that at paper scale; None at paper scale, and where nothing was judged."""
    if result.scale == Scale.paper or result.holds is None:
        return None
    paper, why = runs.get(Scale.paper), result.scale_note and sentence(result.scale_note)
    if paper is None or paper.holds is None:  # an estimate of the time is no verdict
        text = "At paper scale it has not been judged yet."
        return Comparison("unknown", text if result.holds or not why else f"{text} {why}")
    took = f"({format_seconds(paper.seconds)} on {paper.machine})"
    if paper.holds == result.holds:
        return Comparison("same", f"The same verdict was measured at paper scale {took}.")
    verdict = f"At paper scale it {paper.verdict} {took}."
    return Comparison("differs", f"{verdict} {why or 'The verdicts differ, and no explanation is known.'}")


def main(paths: list[str]) -> None:
    """Write ``measured.json`` from files of results and, by its name, that of estimates."""
    if not paths:
        raise SystemExit("usage: python -m lowdyn.report.measured RESULTS.JSON … [estimates.json]")
    try:
        kept = [Path(path) for path in paths]
        given = [json.loads(path.read_text(encoding="utf-8")) for path in kept if path.name == _ESTIMATES]
        results = (result for path in kept if path.name != _ESTIMATES for result in read_results(path))
        content = collect(results, given[0] if given else None)
    except ValueError as error:
        raise SystemExit(f"measured: {error}") from None
    target = Path(__file__).with_name(_FILE)
    replace_atomically(target, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"{target}: {', '.join(f'{scale} {sum(scale in runs for runs in content.values())}' for scale in SCALES)}")


if __name__ == "__main__":
    main(sys.argv[1:])
