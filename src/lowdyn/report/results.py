"""What ``results.json`` holds, checked at the edge: the page trusts no name, type or number it has not seen here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

VERDICTS = {"holds": "holds", "fails": "does not hold", "cannot": "cannot be judged", "error": "error"}
_ERROR = "error:"  # what the reason begins with when something went wrong, rather than that data are missing


class Scale(StrEnum):
    """How large the experiments are."""

    smoke = "smoke"
    quick = "quick"
    paper = "paper"


SCALES: Mapping[str, str] = {
    Scale.smoke: "seconds a claim (small networks, mostly one seed)",
    Scale.quick: "about a minute a claim on the average (small networks, one seed or several)",
    Scale.paper: "the published settings",
}

# A name that may be a folder and an anchor: nothing in it separates paths, starts an option or hides a file.
_SIMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*", re.ASCII)


@dataclass(frozen=True)
class Check:
    """One tested sentence: ``holds`` is None when the numbers are shown, not judged."""

    text: str
    measured: Any = None
    expected: Any = None
    tolerance: Any = None
    holds: bool | None = None


@dataclass(frozen=True)
class Result:
    """One claim with its verdict, as the command wrote it."""

    id: str
    claim: str
    scale: str
    holds: bool | None
    checks: tuple[Check, ...]
    title: str = ""
    source: str = ""
    published: str = ""
    deviation: str = ""
    difference: str = ""
    part: str = ""
    scale_note: str = ""
    source_sha256: str = ""
    reason: str | None = None
    experiments: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    seconds: float | None = None
    times: Mapping[str, Any] = field(default_factory=dict)  # experiment -> its part of the seconds
    versions: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """Return one of VERDICTS."""
        return verdict_of(self.holds, self.reason)


def verdict_of(holds: bool | None, reason: str | None) -> str:
    """Return one of VERDICTS, by what stands in a result.

    >>> [verdict_of(*one) for one in ((True, None), (False, "0.5"), (None, "no data"), (None, "error: out of memory"))]
    ['holds', 'fails', 'cannot', 'error']
    """
    if holds is not None:
        return "holds" if holds else "fails"
    return "error" if (reason or "").startswith(_ERROR) else "cannot"


def reason_in_words(reason: str | None) -> str:
    """Return a reason without the mark of an error, "" where there is none.

    >>> reason_in_words("error: out of memory")
    'out of memory'
    """
    return (reason or "").removeprefix(_ERROR).strip()


_REQUIRED = ("id", "claim", "scale", "holds", "checks")
_TEXTS = {"id", "claim", "scale", "title", "source", "published", "deviation", "text"}
_TEXTS |= {"part", "difference", "scale_note", "source_sha256"}
_WANTED: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(_TEXTS, ((str,), "a string")),
    "reason": ((str, type(None)), "a string or null"),
    "holds": ((bool, type(None)), "true, false or null"),
    "seconds": ((int, float, type(None)), "a number or null"),
    **dict.fromkeys(("checks", "experiments", "seeds"), ((list,), "a list")),
    **dict.fromkeys(("settings", "times", "versions", "machine"), ((dict,), "an object")),
    "data": ((dict, type(None)), "an object or null"),
}


def read_results(path: Path) -> list[Result]:
    """Return the results of a file in the natural order of their ids (C2 before C10).

    ValueError, one line that names the file and the entry, when the file is missing or does not hold a list of
    results. Keys that this version does not know are ignored.
    """
    remedy = "write it again with `lowdyn reproduce`"
    try:
        # An integer that no float holds becomes infinite: every number can be formatted.
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 300 else float(digits))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; {remedy.replace('it again', 'it')}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); {remedy}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path}: holds {_kind(entries)}, not a list of results; {remedy}")
    try:
        results = [_result(entry, f"entry {place}") for place, entry in enumerate(entries, start=1)]
        ids = [result.id for result in results]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"id {twice[0]!r} occurs more than once")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None
    return sorted(results, key=lambda result: _natural(result.id))


def is_simple_name(name: str) -> bool:
    """Return whether a name may be used as a folder of the report and as an anchor of the page.

    >>> [is_simple_name(name) for name in ("C4", "cifar-mlp", "..", "a/b", "C4\\n", "")]
    [True, True, False, False, False, False]
    """
    return _SIMPLE.fullmatch(name) is not None and len(name) <= 100


def _result(entry: object, where: str) -> Result:
    """Return one checked result."""
    if isinstance(entry, dict) and isinstance(entry.get("id"), str):
        where = f"{where} ({entry['id']!r})"
    values = _checked(entry, where, Result, _REQUIRED)
    checks = tuple(
        Check(**_checked(check, f"{where}, check {place}", Check, ("text",)))
        for place, check in enumerate(values["checks"], start=1)
    )
    lists = {name: tuple(values[name]) for name in ("experiments", "seeds") if name in values}
    if not all(isinstance(name, str) for name in lists.get("experiments", ())):
        raise ValueError(f"{where}: experiments should be a list of strings")
    if not all(isinstance(seed, int) for seed in lists.get("seeds", ())):
        raise ValueError(f"{where}: seeds should be a list of whole numbers")
    if not all(isinstance(one, (int, float)) for one in values.get("times", {}).values()):
        raise ValueError(f"{where}: times should be numbers")
    return Result(**{**values, **lists, "checks": checks})


def _checked(entry: object, where: str, record: type[Check] | type[Result], required: tuple[str, ...]) -> Any:
    """Return the known keys of an entry as a dict, each of the wanted type."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {_kind(entry)}, not an object")
    if missing := [name for name in required if name not in entry]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    values = {one.name: entry[one.name] for one in fields(record) if one.name in entry}
    for name, value in values.items():
        kinds, text = _WANTED.get(name, ((object,), ""))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            raise ValueError(f"{where}: {name} is {_kind(value)}, not {text}")
    return values


def _kind(value: object) -> str:
    """Return what a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts C2 before C10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
