"""Running claims into a folder: what is complete is not run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import xarray as xr

from lowdyn.claims.claim import Claim, timed, verdict
from lowdyn.data import DataMissing, DataSet, downloadable, load_set, set_available
from lowdyn.experiments.experiment import Experiment, Settings, combine
from lowdyn.provenance import digest, machine, source_digest, versions
from lowdyn.runner.folder import Folder, RunStopped, as_netcdf, file_digest
from lowdyn.runner.origin import data_of, data_together, machines_together
from lowdyn.runner.pools import Pool
from lowdyn.runner.runs import MadeElsewhere, Outcome, Run, identity, reason_of

Advance = Callable[[int, int], None]  # runs done, runs in all


@dataclass(frozen=True)
class Sweep:
    """The runs of an experiment, a list of one per seed for each cell, and the data sets that they are given."""

    name: str
    cells: Sequence[Settings]
    seeds: Sequence[int]
    runs: Sequence[Sequence[Run]]
    sets: Sequence[DataSet]
    identity: dict[str, Any]

    @property
    def key(self) -> str:
        """The digest of all that decides the numbers."""
        return digest([self.identity, [[run.key for run in cell] for cell in self.runs]])


@dataclass
class Reproduction:
    """What one call of the command runs: a scale, a first seed, where the data are."""

    folder: Folder
    scale: str
    seed: int = 0
    data_dir: Path | None = None
    download: bool = False
    _sets: dict[str, DataSet] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)  # place of a run made elsewhere: why it came to nothing

    def ready(
        self, claims: Sequence[Claim], pool: Pool | None = None, advance: Advance = lambda done, total: None
    ) -> Iterator[Claim]:
        """Yield the claims in the order in which they can be judged.

        Without ``pool`` as they come. With one their runs are made there, and each claim is yielded when its own
        are there; the experiments that a clock is read in are left for :meth:`judge`, after all others.
        """
        if pool is None:
            yield from claims
            return
        late = {one.name for claim in claims for one in timed(claim)}
        runs: dict[str, Run] = {}
        needed: dict[str, set[str]] = {}
        for claim in claims:
            missing = [run for of in claim.EXPERIMENTS if of.name not in late for run in self._missing(of)]
            runs |= {run.place: run for run in missing}
            needed[claim.ID] = {run.place for run in missing}
        waiting = [claim for claim in claims if not late & {of.name for of in claim.EXPERIMENTS}]
        with contextlib.closing(pool.outcomes(list(runs.values()))) as outcomes:
            for done, outcome in enumerate(chain([None], outcomes)):
                if outcome is not None:
                    self._take(outcome)
                    for places in needed.values():
                        places.discard(outcome.place)
                advance(done, len(runs))
                yield from (claim for claim in waiting if not needed[claim.ID])
                waiting = [claim for claim in waiting if needed[claim.ID]]
        yield from (claim for claim in claims if late & {of.name for of in claim.EXPERIMENTS})

    def judge(self, claim: Claim, advance: Advance = lambda done, total: None) -> dict[str, Any]:
        """Return the claim's entry in ``results.json``, from the folder if it is complete there, else by running.

        Never raises for what goes wrong within the claim: ``holds`` is then null and ``reason`` says why, with
        "error: " in front unless only data are missing. RunStopped when the folder can no longer be written to.
        """
        began = time.perf_counter()
        try:
            datasets = {one.name: self.experiment(one, advance) for one in claim.EXPERIMENTS}
            keys = {name: data.attrs["key"] for name, data in datasets.items()}
            key = digest([self.scale, source_digest(claim.__name__), keys])
            done = self.folder.results().get(claim.ID)
            if done is not None and done.get("key") == key and done.get("figure") == file_digest(self._figure(claim)):
                return done
            checks = claim.check(datasets)
            figure = claim.draw(datasets)
            picture = figure.to_json().encode()
            self.folder.write(self._figure(claim), picture)
            holds = verdict(checks)
            reason = None if holds else "; ".join(check.sentence() for check in checks if check.holds is False)
            entry = self._entry(claim, datasets, key=key, holds=holds, reason=reason)
            entry["checks"] = [check.as_json() for check in checks]
            entry["source_sha256"] = source_digest(claim.__name__)
            entry["figure"] = hashlib.sha256(picture).hexdigest()  # the picture is this result's, not another run's
            json.dumps(entry, allow_nan=False)
        except RunStopped:
            raise
        except Exception as error:
            entry = self._entry(claim, {}, holds=None, reason=reason_of(error))
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
        return {
            "id": claim.ID,
            "part": claim.PART,
            "title": claim.TITLE,
            "claim": claim.CLAIM,
            "source": claim.SOURCE,
            "published": claim.PUBLISHED,
            "deviation": claim.DEVIATION,
            "difference": claim.DIFFERENCE,
            "scale_note": claim.SCALE_NOTE,
            "scale": self.scale,
            "checks": [],
            **verdict,
            "experiments": [one.name for one in claim.EXPERIMENTS],
            "settings": {name: one["cells"] for name, one in zip(datasets, described, strict=True)},
            "seeds": sorted({seed for one in described for seed in one["seeds"]}),
            "seconds": round(sum(one["seconds"] for one in described), 3),
            "times": {name: one["seconds"] for name, one in zip(datasets, described, strict=True)},
            "versions": versions(),
            "machine": machines_together([one["machine"] for one in described] or [machine()]),
            "data": data_together(one["data"] for one in described),
        }

    def experiment(self, experiment: Experiment, advance: Advance) -> xr.Dataset:
        """Return all runs of an experiment as one Dataset, running only those that the folder does not hold."""
        sweep = self.sweep(experiment)
        path = self._trajectory(sweep.name)
        held = self.folder.load(path)
        if held is not None and held.attrs.get("key") == sweep.key:
            return held
        runs: list[tuple[Settings, list[xr.Dataset]]] = []
        done, total = 0, len(sweep.cells) * len(sweep.seeds)
        for cell, cell_runs in zip(sweep.cells, sweep.runs, strict=True):
            runs.append((cell, []))
            for run in cell_runs:
                advance(done, total)
                runs[-1][1].append(self._one_run(run, sweep.sets))
                done += 1
        advance(done, total)
        data = self._joined(sweep, runs)
        self.folder.keep(path, as_netcdf(data))
        return data

    def sweep(self, experiment: Experiment) -> Sweep:
        """Return what is to be run of an experiment at this scale; DataMissing without any of its data sets."""
        plan = experiment.plans[self.scale]
        names, together = self._chosen(experiment)
        sets = self._loaded(experiment, names)
        decides = identity(experiment.run, sets)
        seeds = [self.seed + offset for offset in range(plan.seeds)]
        runs = [
            [Run(experiment.name, experiment.run, cell, seed, names, together, decides) for seed in seeds]
            for cell in plan.cells
        ]
        return Sweep(experiment.name, plan.cells, seeds, runs, sets, decides)

    def _loaded(self, experiment: Experiment, names: Sequence[str]) -> list[DataSet]:
        """Return the data sets; DataMissing with all that an experiment lacks, be it data or a package."""
        try:
            for name in names:
                if name not in self._sets:
                    self._sets[name] = load_set(name, self.data_dir, download=self.download)
        except DataMissing as missing:
            try:
                experiment.installed()
            except DataMissing as too:
                raise DataMissing(f"{missing}; and {too}") from None
            raise
        return [self._sets[name] for name in names]

    def _chosen(self, experiment: Experiment) -> tuple[tuple[str, ...], bool]:
        """Return the first of the experiment's choices of data that is there, and whether it goes to ``data``."""
        together = experiment.plans[self.scale].data or experiment.data
        choices = together or tuple((name,) for name in experiment.images)
        if not choices:
            return (), False
        fetched = self.download and self.data_dir is not None

        def there(name: str) -> bool:
            return set_available(name, self.data_dir) or (fetched and downloadable(name))

        found = (choice for choice in choices if all(map(there, choice)))
        return next(found, choices[0]), bool(together)

    def _one_run(self, run: Run, sets: Sequence[DataSet]) -> xr.Dataset:
        path = self.folder.path / run.place
        held = self.folder.load(path)
        if held is not None:
            return held
        if run.place in self._failed:
            raise MadeElsewhere(self._failed[run.place])
        data = run.make(sets)
        self.folder.keep(path, as_netcdf(data))
        return data

    def _missing(self, experiment: Experiment) -> list[Run]:
        """Return the runs that the folder does not hold; none of what cannot be run at all."""
        try:
            sweep = self.sweep(experiment)
        except Exception:  # judging meets it again, and says so
            return []
        held = self.folder.load(self._trajectory(sweep.name))
        if held is not None and held.attrs.get("key") == sweep.key:
            return []
        return [run for cell in sweep.runs for run in cell if not self.folder.holds(self.folder.path / run.place)]

    def _take(self, outcome: Outcome) -> None:
        """Keep what came of a run that was made elsewhere."""
        if outcome.content:
            self.folder.keep(self.folder.path / outcome.place, outcome.content)
        else:
            self._failed[outcome.place] = outcome.reason

    def _trajectory(self, name: str) -> Path:
        return self.folder.path / name / "trajectory.nc"

    def _joined(self, sweep: Sweep, runs: list[tuple[Settings, list[xr.Dataset]]]) -> xr.Dataset:
        """Return all runs as one Dataset that says where it comes from."""
        every = [run for _, cell_runs in runs for run in cell_runs]
        seconds = sum(run.attrs.pop("seconds") for run in every)
        machines = [json.loads(run.attrs.pop("machine")) for run in every]
        data = combine(runs, sweep.seeds)
        provenance = {
            "cells": [dict(cell) for cell in sweep.cells],
            "seeds": sweep.seeds,
            "seconds": round(seconds, 3),
            "data": data_of(data.attrs, sweep.sets),
            "source": sweep.identity["source"],
            "versions": versions(),
            "machine": machines_together(machines),
        }
        return data.assign_attrs(key=sweep.key, experiment=sweep.name, provenance=json.dumps(provenance))
