"""Runs made by the workers of a Dask cluster on this machine, some of which are killed."""

import signal
import sys
import weakref

import pytest
from typer.testing import CliRunner

from lowdyn import cli
from lowdyn.runner import ClusterError, DaskCluster, Folder, Reproduction, RunStopped, pools
from tests.fake_claims import FIXED, HALVING, claim, experiment, reproduce, without_times
from tests.pooled import assert_same_results, die, reproduce_in, rest, several, start

pytest.importorskip("distributed", reason="the extra cluster is not installed")

import distributed

from tests.dask_processes import cluster

pytestmark = pytest.mark.usefixtures("no_data_folder", "workers_find_the_fakes")


@pytest.fixture(scope="module")
def running(workers_find_the_fakes):
    with cluster(workers=2) as running:
        yield running


def command(*arguments):
    """The one line that the command ends with on stderr, and its status."""
    result = CliRunner().invoke(cli.app, ["reproduce", *map(str, arguments)], catch_exceptions=False)
    (line,) = result.stderr.splitlines()
    return result.exit_code, line


def test_without_the_extra_the_command_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    status, line = command("--cluster", "tcp://127.0.0.1:1", "--out", folder)
    assert (status, line) == (2, "lowdyn: --cluster needs Dask: pip install 'lowdyn[cluster]'")
    assert not folder.exists()


def test_processes_here_and_a_cluster_are_two_things(folder):
    status, line = command("--cluster", "tcp://127.0.0.1:1", "--jobs", 2, "--out", folder)
    assert (status, line) == (2, "lowdyn: --jobs is for this machine and --cluster for others; pass one of them")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nowhere.invalid:8786", "tcp://", "a:b"])
def test_an_address_where_nobody_answers(folder, monkeypatch, address):
    monkeypatch.setattr(pools, "PATIENCE", 1)
    status, line = command("--cluster", address, "--out", folder)
    assert status == 2
    assert line.startswith(f"lowdyn: no Dask scheduler answers at {address}; start one with `dask scheduler`")
    assert not folder.exists()


def test_a_client_that_found_nobody_is_gone_before_the_next_begins(monkeypatch):
    """Collected while the next one starts, it would wait for a lock that this one holds, for ever."""
    seen, alive = [], []

    class Watched(distributed.Client):
        def __init__(self, *arguments, **options):
            alive.append([one() is not None for one in seen])
            seen.append(weakref.ref(self))
            super().__init__(*arguments, **options)

    monkeypatch.setattr(pools, "PATIENCE", 1)
    monkeypatch.setattr(distributed, "Client", Watched)
    for _ in range(2):
        with pytest.raises(ClusterError, match="no Dask scheduler answers"):
            DaskCluster.open("tcp://127.0.0.1:1").__enter__()
    assert alive == [[], [False]]


def test_a_cluster_without_workers(monkeypatch):
    monkeypatch.setattr(pools, "PATIENCE", 1)
    with cluster(workers=0) as empty, pytest.raises(ClusterError, match="has no workers; start some with"):
        DaskCluster.open(empty.address).__enter__()


def test_real_claims_on_two_workers(running, serial, folder):
    process = start(folder, "--cluster", running.address)
    _, complaints = process.communicate(timeout=100)
    assert (process.returncode, complaints) == (0, "")
    assert_same_results(folder, serial)


def test_fakes_on_two_workers(running, folder, tmp_path):
    expected = reproduce(tmp_path / "serial", *several())
    with DaskCluster.open(running.address) as pool:
        found = reproduce_in(pool, folder, *several())
    assert without_times(sorted(found, key=lambda entry: entry["id"])) == without_times(expected)


def test_a_worker_that_is_killed_costs_its_run_and_not_the_others(folder, tmp_path):
    one = claim(of=experiment(rest, "rests", cells=(HALVING, FIXED), seeds=5))
    (expected,) = reproduce(tmp_path / "serial", one)
    with cluster(workers=2) as running, DaskCluster.open(running.address) as pool, Folder.open(folder) as opened:
        run, done = Reproduction(opened, "smoke"), []

        def advance(count, total):
            done.append(count)
            if count == 3:
                running.workers[0].kill()

        found = [run.judge(one) for one in run.ready([one], pool, advance)]
        assert running.workers[0].wait() == -signal.SIGKILL
    assert done == list(range(11))
    assert without_times(found) == without_times([expected])


def test_a_run_that_kills_its_workers_is_an_error_of_its_claim(folder):
    deadly = claim("C1", experiment(die, "dies", cells=(HALVING,), seeds=3))
    good = claim("C2", experiment(rest, "rests", cells=(HALVING,), seeds=4))
    failures = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with cluster(workers=2, **failures) as running, DaskCluster.open(running.address) as pool:
        entries = {entry["id"]: entry for entry in reproduce_in(pool, folder, deadly)}
        entries |= {entry["id"]: entry for entry in reproduce_in(pool, folder, good)}
    reason = "error: every worker that tried this run died, as happens when memory runs out"
    assert (entries["C1"]["holds"], entries["C1"]["reason"]) == (None, reason)
    assert entries["C2"]["holds"] is True


def test_a_scheduler_that_is_gone_ends_the_run_in_one_line(folder):
    one = claim(of=experiment(rest, "rests", cells=(HALVING,), seeds=8))
    with cluster(workers=1) as running, DaskCluster.open(running.address) as pool, Folder.open(folder) as opened:
        run = Reproduction(opened, "smoke")

        def advance(count, total):
            if count == 2:
                running.scheduler.kill()

        with pytest.raises(RunStopped, match=r"^the cluster at .* cannot go on .* run the same command again$"):
            list(run.ready([one], pool, advance))
    assert len(list(folder.glob("*/runs/*.nc"))) >= 2
