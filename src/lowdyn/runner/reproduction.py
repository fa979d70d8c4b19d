"""Running claims into a folder: what is complete is not run again, what is written is written whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from lowdyn import trajectory
from lowdyn.claims.claim import Claim, verdict
from lowdyn.data import DataError, DataMissing, DataSet, load_set, set_available
from lowdyn.experiments.experiment import Experiment, Settings, combine
from lowdyn.files import DRAFTS, replace_atomically
from lowdyn.provenance import digest, machine, source_digest, versions

MARKER, LOCK = ".lowdyn", ".lock"  # say that a folder is ours to write in, and that somebody does
Advance = Callable[[int, int], None]  # runs done, runs in all


class FolderError(ValueError):
    """The output folder cannot be used; nothing in it was touched."""


@dataclass
class Folder:
    """An output folder: ``results.json``, a folder per experiment and per claim, and the finished runs."""

    path: Path
    _lock: Any = field(default=None, repr=False)

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
        lock = FileLock(path / LOCK)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            if not ours:
                replace_atomically(path / MARKER, b"results of lowdyn reproduce\n")
        except Timeout as error:
            raise FolderError(f"{path} is in use by another run; wait for it or pass another with --out") from error
        except OSError as error:
            raise FolderError(f"cannot write to {path}: {error.strerror}; pass another folder with --out") from error
        try:
            for draft in path.rglob(DRAFTS):  # of a run that was killed
                draft.unlink(missing_ok=True)
            folder = cls(path, lock)
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
        replace_atomically(self.path / "results.json", text.encode("utf-8", errors="replace"))


@dataclass
class Reproduction:
    """What one call of the command runs: a scale, a first seed, where the data are."""

    folder: Folder
    scale: str
    seed: int = 0
    data_dir: Path | None = None
    download: bool = False
    _sets: dict[str, DataSet] = field(default_factory=dict)

    def judge(self, claim: Claim, advance: Advance = lambda done, total: None) -> dict[str, Any]:
        """Return the claim's entry in ``results.json``, from the folder if it is complete there, else by running.

        Never raises for what goes wrong within the claim: ``holds`` is then null and ``reason`` says why, with
        "error: " in front unless only data are missing.
        """
        began = time.perf_counter()
        try:
            datasets = {one.name: self.experiment(one, advance) for one in claim.EXPERIMENTS}
            keys = {name: data.attrs["key"] for name, data in datasets.items()}
            key = digest([self.scale, source_digest(claim.__name__), keys])
            done = self.folder.results().get(claim.ID)
            if done is not None and done.get("key") == key and done.get("figure") == _file_digest(self._figure(claim)):
                return done
            checks = claim.check(datasets)
            figure = claim.draw(datasets)
            picture = figure.to_json().encode()
            replace_atomically(self._figure(claim), picture)
            holds = verdict(checks)
            reason = None if holds else "; ".join(check.sentence() for check in checks if check.holds is False)
            entry = self._entry(claim, datasets, key=key, holds=holds, reason=reason)
            entry["checks"] = [check.as_json() for check in checks]
            entry["figure"] = hashlib.sha256(picture).hexdigest()  # the picture is this result's, not another run's
            json.dumps(entry, allow_nan=False)
        except DataMissing as missing:
            entry = self._entry(claim, {}, holds=None, reason=str(missing))
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            kind = "" if isinstance(error, DataError | ArithmeticError) else f"{type(error).__name__}: "
            entry = self._entry(claim, {}, holds=None, reason=f"error: {kind}{error}")
        if not entry["seconds"]:
            entry["seconds"] = round(time.perf_counter() - began, 3)
        if entry["holds"] is None:
            self._figure(claim).unlink(missing_ok=True)  # an earlier run's picture would be taken for this one's
        self.folder.save_result(entry)
        return entry

    def _figure(self, claim: Claim) -> Path:
        return self.folder.path / claim.ID / "figure.json"

    def _entry(self, claim: Claim, datasets: dict[str, xr.Dataset], **verdict: Any) -> dict[str, Any]:
        described = [json.loads(data.attrs["provenance"]) for data in datasets.values()]
        data = next((one["data"] for one in described if one["data"]), None)
        return {
            "id": claim.ID,
            "title": claim.TITLE,
            "claim": claim.CLAIM,
            "source": claim.SOURCE,
            "published": claim.PUBLISHED,
            "deviation": claim.DEVIATION,
            "scale": self.scale,
            "checks": [],
            **verdict,
            "experiments": [one.name for one in claim.EXPERIMENTS],
            "settings": {name: one["cells"] for name, one in zip(datasets, described, strict=True)},
            "seeds": sorted({seed for one in described for seed in one["seeds"]}),
            "seconds": round(sum(one["seconds"] for one in described), 3),
            "versions": versions(),
            "machine": machine(),
            "data": data,
        }

    def experiment(self, experiment: Experiment, advance: Advance) -> xr.Dataset:
        """Return all runs of an experiment as one Dataset, running only those that the folder does not hold."""
        plan = experiment.plans[self.scale]
        seeds = [self.seed + offset for offset in range(plan.seeds)]
        given, sets = self.given(experiment)
        source = source_digest(experiment.run.__module__)
        identity = {"source": source, "versions": _deciding_versions(), "data": _digests(sets)}
        keys = [[digest({**identity, "settings": cell, "seed": seed}) for seed in seeds] for cell in plan.cells]
        path = self.folder.path / experiment.name / "trajectory.nc"
        key = digest([identity, keys])
        held = _loaded(path)
        if held is not None and held.attrs.get("key") == key:
            return held
        runs: list[tuple[Settings, list[xr.Dataset]]] = []
        done, total = 0, len(plan.cells) * len(seeds)
        for cell, cell_keys in zip(plan.cells, keys, strict=True):
            runs.append((cell, []))
            for seed, run_key in zip(seeds, cell_keys, strict=True):
                advance(done, total)
                runs[-1][1].append(self._one_run(experiment, cell, seed, run_key, given))
                done += 1
        advance(done, total)
        seconds = sum(run.attrs.pop("seconds") for _, cell_runs in runs for run in cell_runs)
        data = combine(runs, seeds)
        used = {name: data.attrs.get(name) for name in ("data", "used", "sha256")}
        provenance = {
            "cells": [dict(cell) for cell in plan.cells],
            "seeds": seeds,
            "seconds": round(seconds, 3),
            "data": {"name": used["data"], "used": used["used"], "sha256": used["sha256"]} if sets else None,
            "source": source,
            "versions": versions(),
        }
        data = data.assign_attrs(key=key, experiment=experiment.name, provenance=json.dumps(provenance))
        trajectory.save(data, path)
        return data

    def _one_run(
        self, experiment: Experiment, cell: Settings, seed: int, key: str, given: dict[str, Any]
    ) -> xr.Dataset:
        path = self.folder.path / experiment.name / "runs" / f"{key[:24]}.nc"
        held = _loaded(path)
        if held is not None:
            return held
        began = time.perf_counter()
        data = experiment.run(**cell, **given, generator=torch.Generator().manual_seed(seed))
        data = data.assign_attrs(seconds=time.perf_counter() - began)
        trajectory.save(data, path)
        return data

    def given(self, experiment: Experiment) -> tuple[dict[str, Any], list[DataSet]]:
        """Return the first of the experiment's choices of data that is found, as arguments of its run and as a list.

        DataMissing if none is found.
        """
        together = experiment.plans[self.scale].data or experiment.data
        choices = together or tuple((name,) for name in experiment.images)
        if not choices:
            return {}, []
        found = (choice for choice in choices if all(set_available(name, self.data_dir) for name in choice))
        names = next(found, choices[0])
        if self.download and self.data_dir is not None:
            names = choices[0]
        for name in names:
            if name not in self._sets:
                self._sets[name] = load_set(name, self.data_dir, download=self.download)
        sets = [self._sets[name] for name in names]
        return ({"data": tuple(sets)} if together else {"images": sets[0]}), sets


def _digests(sets: list[DataSet]) -> str | list[str] | None:
    digests = [one.sha256 for one in sets]
    return digests[0] if len(digests) == 1 else digests or None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _is_id(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"C\d+", name) is not None


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _deciding_versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in ("lowdyn", "torch", "numpy", "scipy")}


def _loaded(path: Path) -> xr.Dataset | None:
    """Return a saved trajectory, or None where there is none or only a broken one (which is then run again)."""
    try:
        return trajectory.load(path)
    except (FileNotFoundError, ValueError):
        return None
