"""How numbers stand in texts for people, wherever there is one way for all of lowdyn."""

from __future__ import annotations


def thousands(value: float) -> str:
    """Return a whole number, or the one next to ``value``, with its thousands apart.

    >>> thousands(9594010), thousands(1437.5), thousands(300)
    ('9 594 010', '1 438', '300')
    """
    return f"{round(value):,}".replace(",", " ")
