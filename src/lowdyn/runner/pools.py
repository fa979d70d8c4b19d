"""Where runs are made beside this process: in others on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from lowdyn.runner.folder import RunStopped
from lowdyn.runner.runs import Outcome, Run, made_for_another

PATIENCE = 8  # seconds for a scheduler to answer, and then for a first worker


class ClusterError(ValueError):
    """The cluster cannot be used; nothing was run."""


class Pool(Protocol):
    """Makes runs elsewhere; closing the iterator ends what is under way."""

    def outcomes(self, runs: Sequence[Run]) -> Generator[Outcome, None, None]:
        """Yield what comes of each run, in the order in which they end; RunStopped if no more will come."""
        ...


@dataclass(frozen=True)
class Processes:
    """``jobs`` processes on this machine, which share its cores."""

    jobs: int
    data_dir: Path | None = None

    @property
    def threads(self) -> int:
        """Threads of each: an equal share of the cores, at least one, and no more than this process has."""
        from joblib import cpu_count

        return max(1, min(torch.get_num_threads(), cpu_count() // self.jobs))

    def outcomes(self, runs: Sequence[Run]) -> Generator[Outcome, None, None]:
        """Yield what comes of each run."""
        from joblib import Parallel, delayed, parallel_config

        # A process that the data sets have made large ends between two runs, and another takes its place: as it should.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        threads, parent = self.threads, os.getpid()
        # Without max_nbytes=None joblib would pass large arrays through pickles on the disk.
        with parallel_config("loky", n_jobs=self.jobs, inner_max_num_threads=threads, max_nbytes=None):
            parallel = Parallel(return_as="generator_unordered", batch_size=1)
            made = parallel(delayed(_made_in_child)(run, self.data_dir, threads, parent) for run in runs)
        with contextlib.closing(made):
            try:
                yield from made
            except BrokenExecutor as error:
                why = str(error).partition(".")[0]
                raise RunStopped(
                    f"the processes that make runs broke down ({why}); what is complete is kept: run the same command "
                    "again, with fewer --jobs if memory ran out"
                ) from error


def _made_in_child(run: Run, folder: Path | None, threads: int, parent: int) -> Outcome:
    _end_with(parent)
    return made_for_another(run, folder, threads)


@cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a word to its children."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class DaskCluster:
    """The workers of a Dask cluster, as many as there are at any time.

    Runs go out by Dask's own client: joblib's Dask backend waits for ever for a run that the scheduler has given up,
    and for a scheduler that is gone.
    """

    address: str
    client: Any
    data_dir: Path | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, address: str, data_dir: Path | None = None) -> Iterator[DaskCluster]:
        """Connect to the scheduler at ``address``; ClusterError if it, its workers or the extra are missing."""
        try:
            distributed: Any = import_module("distributed")
        except ModuleNotFoundError as error:
            raise ClusterError("--cluster needs Dask: pip install 'lowdyn[cluster]'") from error
        for name in ("distributed", "distributed.client"):  # what they would say is said in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # A client that found no scheduler, in an earlier call, is closed when it is collected. Were that while the next
        # one starts, its end would wait for a lock that the start holds, for ever (distributed 2026.8).
        gc.collect()
        try:
            client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address}; start one with `dask scheduler` and pass the address it "
                "prints, such as tcp://10.0.0.1:8786"
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=PATIENCE)
            except TimeoutError as error:
                raise ClusterError(
                    f"the Dask scheduler at {address} has no workers; start some with "
                    f"`dask worker {address} --nthreads 1`"
                ) from error
            yield cls(address, client, data_dir)

    def outcomes(self, runs: Sequence[Run]) -> Generator[Outcome, None, None]:
        """Yield what comes of each run. A run whose worker dies is given to another, three times."""
        distributed: Any = import_module("distributed")
        futures = self.client.map(made_for_another, runs, folder=self.data_dir, threads=None, pure=False)
        sent = dict(zip((future.key for future in futures), runs, strict=True))
        try:
            for future, outcome in distributed.as_completed(
                futures, loop=self.client.loop, with_results=True, raise_errors=False
            ):
                if future.status == "finished":
                    yield outcome
                elif future.status == "error" and isinstance(outcome[1], distributed.KilledWorker):
                    reason = "error: every worker that tried this run died, as happens when memory runs out"
                    yield Outcome(sent[future.key].place, reason=reason)
                else:
                    why = outcome[1] if future.status == "error" else "it is no longer there"
                    raise RunStopped(
                        f"the cluster at {self.address} cannot go on ({why}); what is complete is kept: run the same "
                        "command again"
                    )
        finally:
            with contextlib.suppress(Exception):  # of a scheduler that is gone
                self.client.cancel(futures, force=True)
