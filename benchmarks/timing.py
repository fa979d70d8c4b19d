"""Timing that survives a noisy machine: functions interleaved in one run, medians compared."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def medians(functions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Return the median seconds of each function over ``repeats`` rounds, each round running all in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(name: str, yardstick: str, ratio: float, limit: float, short: str | None = None) -> bool:
    """Print one line of the table; return whether the ratio keeps its limit.

    The same goes as a line of JSON to the file that the variable LOWDYN_BENCHMARK_RECORDS names, if any. ``short`` is
    what README's table calls it: of a script that gives some, only those lines stand there.
    """
    kept = bool(ratio <= limit)
    print(f"{'ok  ' if kept else 'FAIL'} {name}: {ratio:.3g} x {yardstick} (at most {limit:g})", flush=True)
    if path := os.environ.get("LOWDYN_BENCHMARK_RECORDS"):
        record = {"script": Path(sys.argv[0]).name, "name": name, "short": short, "yardstick": yardstick}
        record |= {"ratio": float(ratio), "limit": float(limit), "kept": kept}
        with Path(path).open("a") as file:
            file.write(json.dumps(record) + "\n")
    return kept


def finish(kept: list[bool]) -> None:
    """Exit with 1 when a limit was not kept."""
    sys.exit(0 if all(kept) else 1)
