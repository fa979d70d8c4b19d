"""Runs made by other processes end as those of one process do."""

import json
import os
import signal
import time

import plotly.graph_objects as go
import pytest
import torch
import xarray as xr

from lowdyn.claims.claim import all_claims, timed
from lowdyn.experiments.experiment import SCALES, Experiment, Plan
from lowdyn.provenance import source_files
from lowdyn.runner import Folder, Processes, Reproduction, RunStopped, runs
from lowdyn.runner.runs import Outcome, Run, identity, made_for_another
from tests.fake_claims import HALVING, Runs, claim, contents, experiment, reproduce, without_times
from tests.pooled import assert_same_results, die, grow, reproduce_in, several, start

pytestmark = pytest.mark.usefixtures("no_data_folder", "workers_find_the_fakes")


class Here:
    """A pool that makes runs in this process, remembers them, and is broken after ``last`` of them."""

    def __init__(self, last=None):
        self.made, self.last, self.closed = [], last, 0

    def outcomes(self, asked):
        try:
            for run in asked:
                if len(self.made) == self.last:
                    raise RunStopped("no more")
                self.made.append(run.seed)
                yield made_for_another(run, None, None)
        finally:
            self.closed += 1


def threads(*, generator):
    return xr.Dataset({"threads": ("step", [torch.get_num_threads(), os.getpid()])}, coords={"step": [0, 1]})


threads.__module__ = "lowdyn.linalg"  # whose source stands for the fake's own


# --- what is sent away and what is not ------------------------------------------------------------------------


def test_a_pool_changes_no_result(folder, tmp_path):
    serial = reproduce(tmp_path / "serial", *several())
    pool, asked, told = Here(), several(), []
    found = reproduce_in(pool, folder, *asked, told=told)
    assert without_times(sorted(found, key=lambda entry: entry["id"])) == without_times(serial)
    assert pool.made == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]  # what two claims share is made once
    assert told == [(done, 10) for done in range(11)]
    assert pool.closed == 1
    of = {name: content for name, content in contents(folder).items() if name.endswith("figure.json")}
    assert of == {name: content for name, content in contents(tmp_path / "serial").items() if name in of}


def test_claims_come_as_soon_as_their_runs_are_there(folder):
    every = (claim("C1", experiment(name="one")), claim("C2", experiment(name="two", seeds=1)), claim("C3", ()))
    every[2].EXPERIMENTS, pool = (), Here()
    with Folder.open(folder) as opened:
        seen = [(one.ID, len(pool.made)) for one in Reproduction(opened, "smoke").ready(every, pool)]
    assert seen == [("C3", 0), ("C1", 3), ("C2", 4)]


def test_experiments_with_the_same_settings_are_not_confused(folder):
    every = claim("C1", experiment(name="one")), claim("C2", experiment(name="two"))
    reproduce_in(pool := Here(), folder, *every)
    assert pool.made == [0, 1, 2, 0, 1, 2]
    assert [len(list((folder / name / "runs").glob("*.nc"))) for name in ("one", "two")] == [3, 3]


def test_only_what_is_missing_is_sent(folder):
    reproduce(folder, claim(of=experiment(seeds=2)))
    pool = Here()
    reproduce_in(pool, folder, claim(of=experiment(seeds=4)))
    assert pool.made == [2, 3]
    reproduce_in(again := Here(), folder, claim(of=experiment(seeds=4)))
    assert again.made == []
    next(iter(folder.glob("halving/runs/*.nc"))).write_bytes(b"damaged")
    (folder / "halving" / "trajectory.nc").unlink()
    reproduce_in(again, folder, claim(of=experiment(seeds=4)))
    assert len(again.made) == 1


def test_what_was_complete_when_a_pool_broke_is_kept(folder):
    with pytest.raises(RunStopped, match="no more"):
        reproduce_in(Here(last=2), folder, claim())
    pool = Here()
    (entry,) = reproduce_in(pool, folder, claim())
    assert (pool.made, entry["holds"]) == ([2], True)


def test_runs_in_which_a_clock_is_read_are_made_here_and_last(folder):
    clocked, other = Runs(), Runs()
    first = claim("C1", experiment(clocked, "clocked"))
    first.TIMED = first.EXPERIMENTS
    second = claim("C2", experiment(other, "other"))
    pool, order = Here(), []
    with Folder.open(folder) as opened:
        run = Reproduction(opened, "smoke")
        for one in run.ready((first, second), pool):
            order.append(one.ID)
            assert clocked.seeds == []
            run.judge(one)
    assert order == ["C2", "C1"]
    assert (len(pool.made), clocked.seeds) == (3, [0, 1, 2])


def test_claims_that_speak_of_seconds_say_that_they_are_timed():
    """Found from their sources: a claim that reads a variable of seconds names the experiments it is from."""
    speaking = {}
    for name, one in all_claims().items():
        source = source_files(one.__name__)[one.__name__].read_text(encoding="utf-8")
        speaking[name] = '"seconds"' in source or 'seconds"]' in source or '_seconds"' in source
    assert {name for name, speaks in speaking.items() if speaks} == {
        name for name, one in all_claims().items() if timed(one)
    }
    for one in all_claims().values():
        assert {of.name for of in timed(one)} <= {of.name for of in one.EXPERIMENTS}


# --- a worker ---------------------------------------------------------------------------------------------------


def a_run(function=None, sets=(), **changed):
    function = function or Runs()
    decides = identity(function, [runs.load_set(name) for name in sets])
    return Run("fake", function, HALVING, 3, tuple(sets), False, {**decides, **changed})


def test_a_worker_returns_the_bytes_of_a_file():
    outcome = made_for_another(a_run(), None, None)
    data = xr.load_dataset(outcome.content, engine="h5netcdf")
    assert data["loss"].sizes == {"step": 4}
    assert json.loads(data.attrs["machine"])["threads"] == torch.get_num_threads()
    assert outcome.reason == ""


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"source": "other"}, "another source of lowdyn"),
        ({"versions": {"lowdyn": "99.0"}}, "lowdyn 0.1.0, not 99.0; numpy"),
        ({"data": "other"}, "other data by the name of digits"),
    ],
)
def test_a_worker_refuses_what_it_would_compute_otherwise(changed, difference):
    outcome = made_for_another(a_run(sets=("digits",), **changed), None, None)
    assert outcome.content == b""
    assert outcome.reason.startswith("error: RuntimeError: the worker ")
    assert difference in outcome.reason


def test_a_worker_without_the_data_says_which_worker(tmp_path):
    run = Run("fake", Runs(), HALVING, 3, ("mnist",), False, {})
    outcome = made_for_another(run, tmp_path, None)
    assert outcome == Outcome(run.place, reason=outcome.reason)
    assert outcome.reason.startswith("on the worker ")
    assert "LOWDYN_DATA" in outcome.reason


# --- processes ------------------------------------------------------------------------------------------------


def test_two_processes_end_as_one_does(folder, tmp_path):
    serial = reproduce(tmp_path / "serial", *several(), seed=7)
    asked = several()
    found = reproduce_in(Processes(2), folder, *asked, seed=7)
    assert without_times(sorted(found, key=lambda entry: entry["id"])) == without_times(serial)
    assert [one.EXPERIMENTS[0].run.seeds for one in asked] == [[], [], [], [], []]  # none in this process


def test_processes_share_the_cores(folder, monkeypatch):
    assert Processes(10**6).threads == 1
    before = torch.get_num_threads()
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    torch.set_num_threads(5)
    try:
        assert [Processes(jobs).threads for jobs in (1, 2, 4)] == [5, 3, 1]
        one = claim(of=Experiment("threads", threads, dict.fromkeys(SCALES, Plan(({},), 4))))
        one.check, one.draw = (lambda _: []), (lambda _: go.Figure())
        (entry,) = reproduce_in(Processes(2), folder, one)
    finally:
        torch.set_num_threads(before)
    data = xr.load_dataset(folder / "threads" / "trajectory.nc", engine="h5netcdf")
    assert set(data["threads"].values[..., 0].flat) == {3}
    assert os.getpid() not in data["threads"].values[..., 1]
    assert entry["machine"]["threads"] == 3


def test_a_process_that_is_killed_ends_the_run_in_one_line(folder):
    kept = claim("C1", experiment(Runs(), "kept"))
    with pytest.raises(RunStopped, match=r"^the processes .* broke down .* what is complete is kept: .* --jobs"):
        reproduce_in(Processes(2), folder, kept, claim("C2", experiment(die, "dies", cells=(HALVING,), seeds=6)))
    assert contents(folder).keys() >= {".lowdyn"}
    assert reproduce(folder, kept)[0]["holds"] is True


def test_a_process_that_has_grown_is_replaced_without_a_word(folder, recwarn):
    one = claim(of=experiment(grow, "grows", cells=(HALVING,), seeds=6))
    (entry,) = reproduce_in(Processes(2), folder, one)
    made_by = xr.load_dataset(folder / "grows" / "trajectory.nc", engine="h5netcdf")["loss"].isel(step=0).values
    assert len(set(made_by.flat)) > 2
    assert (entry["holds"], list(recwarn)) == (True, [])


def assert_group_ends(group, within=15):
    """Nothing of a process group is left."""
    for _ in range(10 * within):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left over")


def test_real_claims_in_two_processes(serial, folder):
    process = start(folder, "--jobs", "2")
    printed, complaints = process.communicate(timeout=100)
    assert (process.returncode, complaints) == (0, "")
    assert sorted(line.split()[0] for line in printed.splitlines() if line.startswith("C")) == ["C20", "C4"]
    assert_same_results(folder, serial)


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_workers_end_with_the_command_and_it_goes_on_from_there(serial, folder, ending, status):
    process = start(folder, "--jobs", "2")
    while process.poll() is None and not list(folder.glob("*/runs/*.nc")):
        time.sleep(0.01)
    if ending == signal.SIGINT:
        os.killpg(process.pid, ending)  # as a terminal does: workers get it too
    else:
        process.send_signal(ending)
    complaints = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert "Traceback" not in complaints
    assert_group_ends(process.pid)
    process = start(folder, "--jobs", "2")
    assert process.communicate(timeout=100)[1] == ""
    assert process.returncode == 0
    assert_same_results(folder, serial)
