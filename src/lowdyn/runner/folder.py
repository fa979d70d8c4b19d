"""The output folder: taken by one process, written whole and on the disk, damage in it noticed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from lowdyn import trajectory
from lowdyn.files import DRAFTS, replace_atomically, sync_directory

MARKER, LOCK = ".lowdyn", ".lock"  # say that a folder is ours to write in, and that somebody does
FULL = (errno.ENOSPC, errno.EDQUOT)


class FolderError(ValueError):
    """The output folder cannot be used; nothing in it was touched."""


class RunStopped(RuntimeError):
    """The run cannot go on. What is complete is kept, and the same command takes it up again."""


@dataclass(frozen=True)
class Folder:
    """An output folder: ``results.json``, a folder per experiment and per claim, and the finished runs."""

    path: Path

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Folder]:
        """Take the folder for this process; FolderError if it is foreign, unwritable or in use."""
        from filelock import FileLock, Timeout

        if path.exists() and not path.is_dir():
            raise FolderError(f"{path} is not a folder; pass another with --out")
        ours = (path / MARKER).exists()
        # A run killed at its first write leaves a lock and a draft of the marker, and nothing else.
        if path.is_dir() and not ours and any(one.name != LOCK and not one.match(DRAFTS) for one in path.iterdir()):
            raise FolderError(f"{path} holds files that are not lowdyn's; pass an empty or a new folder with --out")
        folder, lock, new = cls(path), FileLock(path / LOCK), _missing(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            if not ours:
                replace_atomically(path / MARKER, b"results of lowdyn reproduce\n")
                _sync(path, new)
        except Timeout as error:
            raise FolderError(f"{path} is in use by another run; wait for it or pass another with --out") from error
        except OSError as error:
            lock.release()
            if error.errno in FULL:
                raise folder.stopped(error) from error
            raise FolderError(f"cannot write to {path}: {error.strerror}; pass another folder with --out") from error
        try:
            for draft in path.rglob(DRAFTS):  # of a run that was killed
                draft.unlink(missing_ok=True)
            folder.results()
            yield folder
        finally:
            lock.release()

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the results so far by claim id; FolderError if the file is not what was written."""
        path = self.path / "results.json"
        if not path.exists():
            return {}
        try:
            entries = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
            results = {entry["id"]: entry for entry in entries}
            if not isinstance(entries, list) or len(results) < len(entries) or not all(map(_is_id, results)):
                raise ValueError("every entry needs an id of its own, such as C4")
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise FolderError(f"{path} is not a list of results ({error}); move it away and run again") from error
        return results

    def save_result(self, entry: dict[str, Any]) -> None:
        """Put one claim's result in its place among the others."""
        results = {**self.results(), entry["id"]: entry}
        ordered = sorted(results.values(), key=lambda one: int(one["id"].removeprefix("C")))
        text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False)
        # Names of files may hold what is no text; it is replaced, not fatal.
        self.write(self.path / "results.json", text.encode("utf-8", errors="replace"))

    def write(self, path: Path, content: bytes) -> None:
        """Replace a file of the folder, on the disk when this returns; RunStopped if the system refuses."""
        new = _missing(path.parent)
        with self.writing():
            replace_atomically(path, content)
            _sync(path.parent, new)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the system refuses, such as room on the disk, into RunStopped."""
        try:
            yield
        except OSError as error:
            raise self.stopped(error) from error

    def stopped(self, error: OSError) -> RunStopped:
        """Return the one line that says what is in the way, and that nothing is lost."""
        return RunStopped(
            f"cannot write to {self.path}: {error.strerror or error}; what is complete there is kept: put this right "
            "and run the same command again"
        )

    def keep(self, path: Path, content: bytes) -> None:
        """Write a trajectory, given as the bytes of :func:`as_netcdf`, after its checksum.

        In this order the file itself is what makes it complete: there is no moment at which it is there and is not
        trusted. The checksum has the form of sha256sum, which can check it.
        """
        self.write(_checksum(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
        self.write(path, content)

    def holds(self, path: Path) -> bool:
        """Return whether a trajectory is there with the bytes that were written."""
        try:
            wanted = _checksum(path).read_text(encoding="ascii").split()[0]
            return file_digest(path) == wanted
        except (OSError, ValueError, IndexError):
            return False

    def load(self, path: Path) -> xr.Dataset | None:
        """Return a trajectory; None where there is none, or not the one that was written: it is then made again."""
        try:
            return trajectory.load(path) if self.holds(path) else None
        except (FileNotFoundError, ValueError):
            return None


def as_netcdf(data: xr.Dataset) -> bytes:
    """Return ``data`` as the bytes of one netCDF file."""
    dask: Any = sys.modules.get("dask")
    # In a worker of Dask xarray would lock this file, which is one in memory, through the whole cluster.
    with dask.config.set(scheduler="synchronous") if dask else contextlib.nullcontext():
        return bytes(data.to_netcdf(engine="h5netcdf"))


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _missing(folder: Path) -> list[Path]:
    """Return ``folder`` and those above it that are not there yet."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def _sync(folder: Path, new: list[Path]) -> None:
    """Put the names in ``folder`` on the disk, and those of ``new`` folders in the ones that hold them."""
    for place in (folder, *(one.parent for one in new)):
        sync_directory(place)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _is_id(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"C\d+", name) is not None
