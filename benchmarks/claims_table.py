#!/usr/bin/env python3
"""Make README's table of the claims from the results that are kept: python benchmarks/claims_table.py

A line for each claim: the verdict at quick scale, with the data folder and without, and at paper scale, and what was
measured where a claim does not hold. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tables import replaced, table_lines

from lowdyn.files import replace_atomically
from lowdyn.report.results import Result, read_results

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- claims: made by benchmarks/claims_table.py -->", "<!-- end of claims -->"
COLUMNS = {"quick, with the data folder": "quick", "quick, without": "quick-digits", "paper": "paper"}


def verdict_text(result: Result | None) -> str:
    """Return what a cell says: the verdict, and where it is not that a claim holds, the first reason."""
    if result is None:
        return ""
    verdict = {"holds": "holds", "fails": "**no**", "cannot": "cannot", "error": "error"}[result.verdict]
    return f"{verdict}: {result.reason.split('; ')[0]}" if result.reason else verdict


def as_table(kept: Mapping[str, list[Result]]) -> str:
    """Return the table of ``kept``, folder -> results; a claim that no folder holds has no line."""
    found = {folder: {result.id: result for result in results} for folder, results in kept.items()}
    titles = {result.id: result.title for results in kept.values() for result in results}
    rows = [
        (f"{name} {titles[name]}", *(verdict_text(found[folder].get(name)) for folder in COLUMNS.values()))
        for name in sorted(titles, key=lambda name: int(name[1:]))
    ]
    return "\n".join(table_lines(("claim", *COLUMNS), rows))


def main() -> None:
    """Rewrite the table in README.md."""
    kept = {folder: read_results(ROOT / "docs" / "results" / folder / "results.json") for folder in COLUMNS.values()}
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(encoding="utf-8"), as_table(kept), BEGIN, END)
    replace_atomically(readme, text.encode())


if __name__ == "__main__":
    main()
