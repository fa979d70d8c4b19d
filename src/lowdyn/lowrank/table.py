"""Rows of numbers as a table: in plain text, in rich, and as columns for pandas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from lowdyn.numerals import thousands

Side = Literal["left", "right"]


class Table(ABC):
    """What prints as a table: subclasses give ``rows()``, mappings from column to value, and a ``caption()``.

    ``str`` is plain text, ``rich.print`` draws it, ``pandas.DataFrame(table.rows())`` is a frame.
    """

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return the table's rows, each a mapping from the column's name to a plain value."""

    @abstractmethod
    def caption(self) -> str:
        """Return what the rows do not say, in a line or a few."""

    def __str__(self) -> str:
        columns, cells = self._columns()
        widths = [max(map(len, (name, *values))) for (name, _), values in zip(columns, cells, strict=True)]
        rule = ["─" * width for width in widths]
        lines = [_padded([name for name, _ in columns], columns, widths), rule]
        lines += [_padded(row, columns, widths) for row in zip(*cells, strict=True)]
        return "\n".join([*("  ".join(line).rstrip() for line in lines), self.caption()])

    def __rich__(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        columns, cells = self._columns()
        table = RichTable(caption=Text(self.caption()), caption_justify="left")
        for name, justify in columns:
            table.add_column(name, justify=justify)
        for row in zip(*cells, strict=True):
            table.add_row(*map(Text, row))  # as text: a layer's name may hold square brackets
        return table

    def _columns(self) -> tuple[list[tuple[str, Side]], list[list[str]]]:
        """Return the columns, each with the side it is set to, and their cells: numbers to the right."""
        rows = self.rows()
        values = {name: [row[name] for row in rows] for name in rows[0]}
        columns: list[tuple[str, Side]] = [
            (name, "right" if any(isinstance(value, int | float) for value in column) else "left")
            for name, column in values.items()
        ]
        return columns, [[shown(value) for value in column] for column in values.values()]


def _padded(row: Sequence[str], columns: Sequence[tuple[str, Side]], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if side == "right" else cell.ljust(width)
        for cell, (_, side), width in zip(row, columns, widths, strict=True)
    ]


def shown(value: Any) -> str:
    """Return a value as a cell shows it: thousands apart, four digits of a fraction, nothing for None.

    >>> shown(9594010), shown(0.98765), shown((2000, 784)), shown(None)
    ('9 594 010', '0.9877', '2000 x 784', '')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return thousands(value) if isinstance(value, int) else str(value)


def ratio(name: str, before: float, after: float, unit: str = "") -> str:
    """Return a before and an after in words, with their ratio.

    >>> ratio("parameters", 9594010, 1674010)
    'parameters 9 594 010 -> 1 674 010 (0.174)'
    """
    share = f" ({after / before:.3f})" if before else ""
    return f"{name} {shown(before)}{unit} -> {shown(after)}{unit}{share}"
