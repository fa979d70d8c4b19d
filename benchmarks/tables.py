"""The tables that ``benchmarks/run`` makes of records: on the terminal, in docs/benchmarks.md and in README.md.

A record is what ``timing.report`` writes, script, name, short, yardstick, ratio, limit and kept, with the machine and
the date of the run that ``benchmarks/run`` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowdyn.numerals import thousands

Record = dict[str, Any]
BEGIN = "<!-- benchmarks: made by benchmarks/run --readme -->"
END = "<!-- end of benchmarks -->"


def as_text(records: Sequence[Record]) -> str:
    """Return a table for the terminal."""
    rows = [("script", "what", "yardstick", "ratio", "limit", "")]
    rows += [(*_row(record), "" if record["kept"] else "NOT KEPT") for record in records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", machines(records), ""])


def as_page(records: Sequence[Record]) -> str:
    """Return docs/benchmarks.md."""
    rows = [(*_row(record), "yes" if record["kept"] else "**no**") for record in records]
    lines = [
        "# Benchmarks",
        "",
        f"Made by `benchmarks/run`, not by hand, on {machines(records)}.",
        "",
        "The ratio is time, or what else the name says, over the yardstick's, both measured in the same run.",
        "",
        *table_lines(("script", "what", "yardstick", "ratio", "at most", "kept"), rows),
    ]
    return "\n".join([*lines, ""])


def machines(records: Sequence[Record]) -> str:
    """Return the machines of records and when they were measured there; of several, what was measured on each.

    >>> run = {"script": "a.py", "machine": "a processor, 2 cores"}
    >>> machines([run | {"date": "2026-01-02"}, run | {"date": "2026-01-01"}])
    'a processor, 2 cores (2026-01-01 to 2026-01-02)'
    >>> machines([run | {"date": "2026-01-02"}, {"script": "b.py", "machine": "another", "date": "2026-01-02"}])
    'a processor, 2 cores (2026-01-02: a.py); another (2026-01-02: b.py)'
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["machine"], []).append(record)
    places = []
    for machine, here in found.items():
        days = [record["date"] for record in here]
        scripts = ", ".join(dict.fromkeys(record["script"] for record in here))
        span = " to ".join(sorted({min(days), max(days)}))
        places.append(f"{machine} ({span}{f': {scripts}' if len(found) > 1 else ''})")
    return "; ".join(places)


def for_readme(records: Sequence[Record]) -> str:
    """Return README's table, below where it was made: the lines that their script names shortly, or all of it."""
    naming = {record["script"] for record in records if record["short"]}
    chosen = [record for record in records if record["short"] or record["script"] not in naming]
    rows = [
        (f"`{record['script']}`: {record['short'] or record['name']}", record["yardstick"], ratio_text(record["ratio"]))
        for record in chosen
    ]
    head = f"Ratios are of times where nothing else is named; measured on {machines(records)}."
    return "\n".join([head, "", *table_lines(("what", "yardstick", "ratio"), rows)])


def replaced(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Return ``text`` with ``table`` between the two markers; ValueError where they do not stand once, in order."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the table needs one line {begin!r} and, after it, one line {end!r}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def ratio_text(ratio: float) -> str:
    """Return a ratio in two or three digits, small ones as 1/n.

    >>> ratio_text(1.083), ratio_text(0.156), ratio_text(1 / 14123), ratio_text(0.0)
    ('1.08', '1/6.4', '1/14 000', '0')
    """
    if ratio >= 0.5 or ratio <= 0:
        return f"{ratio:.2f}" if ratio else "0"
    inverse = 1 / ratio
    rounded = float(f"{inverse:.2g}")
    return f"1/{rounded:.1f}" if inverse < 10 else f"1/{thousands(rounded)}"


def _row(record: Record) -> tuple[str, ...]:
    return (
        record["script"], record["name"], record["yardstick"], ratio_text(record["ratio"]), f"{record['limit']:.3g}"
    )  # fmt: skip


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]
