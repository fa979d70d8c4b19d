"""Where a result comes from that several runs, or several experiments, went into: their data and their machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowdyn.data import DataSet

FIELDS = ("name", "used", "sha256")
_AND = " + "  # between the sets of one entry; the report splits names at it


def data_of(attrs: Mapping[str, Any], sets: Sequence[DataSet]) -> dict[str, Any] | None:
    """Return the data of an experiment, None without any: what its runs say they used, then sets they do not name.

    Those, such as a checkpoint or images to train on beforehand, stand there as they were given to the runs.
    """
    own = {field: attrs.get(name) for field, name in zip(FIELDS, ("data", "used", "sha256"), strict=True)}
    named = (own["name"] or "").split(_AND)
    beside = [{field: getattr(one, field) for field in FIELDS} for one in sets if one.name not in named]
    return data_together([own, *beside])


def data_together(entries: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the distinct data sets of several experiments as one entry, in the order in which they come.

    >>> both = {"name": "a + b", "used": "1 + 2", "sha256": "0f + ff"}
    >>> data_together([{"name": "a", "used": "1", "sha256": "0f"}, None, both])
    {'name': 'a + b', 'used': '1 + 2', 'sha256': '0f + ff'}
    """
    found = dict.fromkeys(one for entry in entries if entry and entry["name"] for one in _sets(entry))
    if not found:
        return None
    return {field: _AND.join(column) for field, column in zip(FIELDS, zip(*found, strict=True), strict=True)}


def _sets(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the sets of an entry one by one; as one where they cannot be told apart, "–" for what is not known."""
    texts = [str(entry[field] or "–") for field in FIELDS]
    columns = [text.split(_AND) for text in texts]
    return list(zip(*columns, strict=True)) if len({len(column) for column in columns}) == 1 else [tuple(texts)]


def machines_together(machines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several machines have in common; where they differ, every value there is.

    >>> machines_together([{"system": "Linux", "threads": 2}, {"system": "Linux", "threads": 1}])
    {'system': 'Linux', 'threads': '1, 2'}
    """
    values = {name: sorted({one[name] for one in machines}, key=str) for name in machines[0]}
    return {name: found[0] if len(found) == 1 else ", ".join(map(str, found)) for name, found in values.items()}
