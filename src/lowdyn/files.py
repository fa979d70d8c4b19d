"""Files that are either the old one or the new one: atomic replacement."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

DRAFTS = ".*.tmp"  # pattern of the files that an interrupted replacement leaves behind


def replace_atomically(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write ``content`` to ``path`` so that a reader, or a crash, sees the old file or the new, never a part.

    ``content`` is the whole of it or its parts in order, which are written as they come.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by hand, not by tempfile: the file gets the permissions of any other file of the user.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            for part in [content] if isinstance(content, bytes) else content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sync_directory(folder: Path) -> None:
    """Put the names in ``folder`` on the disk: without it a loss of power may undo a replacement or a new folder."""
    if not hasattr(os, "O_DIRECTORY"):  # pragma: no cover - systems that open no directories
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
