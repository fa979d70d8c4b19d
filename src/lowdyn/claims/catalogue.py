"""What the claims say of themselves, read from their sources without running them: nothing heavy is imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Description:
    """The texts of a claim, as its module names them in capitals (see :class:`lowdyn.claims.claim.Claim`)."""

    id: str
    part: str
    title: str
    claim: str
    source: str
    published: str
    deviation: str
    difference: str
    scale_note: str


def catalogue() -> dict[str, Description]:
    """Return the description of every claim by its id, in the order of the lecture.

    >>> catalogue()["C4"].part
    'predict'
    """
    paths = sorted(Path(__file__).parent.glob("c[0-9][0-9]_*.py"))
    described = [_described(path) for path in paths]
    return {one.id: one for one in described}


def _described(path: Path) -> Description:
    """Return the description in a source file; its texts are literals."""
    texts: dict[str, str] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id.lower()
            if name in {field.name for field in fields(Description)}:
                texts[name] = ast.literal_eval(statement.value)
    return Description(**texts)
