"""Timing that survives a noisy machine: functions interleaved in one run, medians compared."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping


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


def report(name: str, yardstick: str, ratio: float, limit: float) -> bool:
    """Print one line of the table; return whether the ratio keeps its limit."""
    kept = ratio <= limit
    print(f"{'ok  ' if kept else 'FAIL'} {name}: {ratio:.2f} x {yardstick} (at most {limit:g})", flush=True)
    return kept


def finish(kept: list[bool]) -> None:
    """Exit with 1 when a limit was not kept."""
    sys.exit(0 if all(kept) else 1)
