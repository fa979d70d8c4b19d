"""Claims for pools of processes to run: fakes in this process's own words, and the command in another."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import xarray as xr

from lowdyn.runner import Folder, Reproduction
from tests.fake_claims import FIXED, HALVING, Runs, claim, contents, experiment, read, without_times

REAL = ("C4", "C20")


def die(*, steps, factor, generator):
    if generator.initial_seed() == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return xr.Dataset({"loss": ("step", np.zeros(2))}, coords={"step": [0, 1]})


def rest(*, steps, factor, generator):
    """A run that takes a while, so that a worker can be killed in the middle of it."""
    time.sleep(0.2)
    return xr.Dataset({"loss": ("step", np.full(2, 0.1 * generator.initial_seed()))}, coords={"step": [0, 1]})


held = []


def grow(*, steps, factor, generator):
    """A run that leaves its process 320 MB larger; who made it, and not before a process is looked at again."""
    from tests import pooled  # the function is sent by value, a module stays

    pooled.held.append(np.ones(40_000_000))
    time.sleep(1.1)
    return xr.Dataset({"loss": ("step", [os.getpid(), 0.0])}, coords={"step": [0, 1]})


die.__module__ = rest.__module__ = grow.__module__ = "lowdyn.linalg"  # whose source stands for the fakes' own


def several():
    """Claims that share an experiment, that fail, that lack data; made anew, since fakes count their runs."""
    shared = experiment(Runs(), "shared", cells=(HALVING, FIXED))
    return (
        claim("C1", shared),
        claim("C2", shared, draw=lambda _: 1 / 0),
        claim("C3", experiment(Runs({1: RuntimeError("out of luck"), 2: RuntimeError("later")}), "fails")),
        claim("C4", experiment(Runs(), "on-images", images=("mnist",))),
        claim("C5", experiment(Runs(), "on-digits", images=("mnist", "digits"), seeds=1)),
    )


def reproduce_in(pool, folder, *every, told=None, **options):
    """Judge claims in a folder as the command does with a pool; return their entries in the order of judging."""
    with Folder.open(folder) as opened:
        run = Reproduction(opened, **{"scale": "smoke", **options})
        advance = (lambda done, total: None) if told is None else lambda done, total: told.append((done, total))
        with closing(run.ready(every, pool, advance)) as ready:
            return [run.judge(one) for one in ready]


def start(folder, *options):
    command = [sys.executable, "-m", "lowdyn.cli", "reproduce", *REAL, "--scale", "smoke", "--out", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    # A shell that runs the tests in the background has SIGINT ignored, which a child would inherit.
    with_interrupts = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([*command, *options], start_new_session=True, **pipes, **with_interrupts)


def finished(folder):
    """Run the command from start to end; return its folder."""
    process = start(folder)
    assert (process.communicate(timeout=100)[1], process.returncode) == ("", 0)
    return folder


def assert_same_results(folder, serial):
    assert without_times(read(folder / "results.json")) == without_times(read(serial / "results.json"))
    for path in serial.glob("*/figure.json"):
        assert (folder / path.relative_to(serial)).read_bytes() == path.read_bytes()
    assert contents(folder).keys() == contents(serial).keys()
