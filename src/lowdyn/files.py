"""Files that are either the old one or the new one: atomic replacement."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

DRAFTS = ".*.tmp"  # pattern of the files that an interrupted replacement leaves behind


def replace_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader, or a crash, sees the old file or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by hand, not by tempfile: the file gets the permissions of any other file of the user.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
