"""One smoke reproduction of real claims by the command, killed and not."""

import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import plotly.io
import pytest

from lowdyn import trajectory
from lowdyn.claims.claim import all_claims
from lowdyn.runner import Reproduction
from tests.commands import lowdyn
from tests.fake_claims import contents, read, without_times

REAL = ("C4", "C20")  # the two fastest: seven runs in half a second

pytestmark = pytest.mark.usefixtures("no_data_folder")


def start(folder):
    command = [sys.executable, "-m", "lowdyn.cli", "reproduce", *REAL, "--scale", "smoke", "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A folder that the command wrote from start to end, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke") / "out"
    process = start(folder)
    printed, complaints = process.communicate(timeout=100)
    assert (process.returncode, complaints) == (0, "")
    return SimpleNamespace(folder=folder, printed=printed, results=read(folder / "results.json"))


def test_smoke_prints_verdicts_and_the_report(smoke):
    assert re.findall(r"^(C\d+) +holds ", smoke.printed, re.MULTILINE) == list(REAL)
    assert smoke.printed.endswith(f"report: {smoke.folder / 'index.html'}\n")


def test_smoke_results(smoke):
    assert [entry["id"] for entry in smoke.results] == list(REAL)
    for entry in smoke.results:
        claim = all_claims()[entry["id"]]
        assert (entry["claim"], entry["source"], entry["scale"]) == (claim.CLAIM, claim.SOURCE, "smoke")
        assert (entry["holds"], entry["reason"], entry["seeds"], entry["data"]) == (True, None, [0], None)
        assert entry["experiments"] == [experiment.name for experiment in claim.EXPERIMENTS]
        cells = {experiment.name: list(experiment.plans["smoke"].cells) for experiment in claim.EXPERIMENTS}
        assert entry["settings"] == cells
        assert entry["seconds"] > 0
        assert any(check["holds"] for check in entry["checks"])
        assert {check["holds"] for check in entry["checks"]} <= {True, None}


def test_smoke_files(smoke):
    for entry in smoke.results:
        figure = plotly.io.from_json((smoke.folder / entry["id"] / "figure.json").read_text(encoding="utf-8"))
        assert len(figure.data) >= 2
        for name in entry["experiments"]:
            data = trajectory.load(smoke.folder / name / "trajectory.nc")
            assert data.sizes["cell"] == len(entry["settings"][name])
            assert {"seed", "step"} <= data.sizes.keys()


def test_smoke_report(smoke):
    page = (smoke.folder / "index.html").read_text(encoding="utf-8")
    for name in REAL:
        assert f'id="{name}"' in page
        assert all_claims()[name].TITLE in page


def test_smoke_again_runs_nothing(smoke, monkeypatch):
    def never(*_):
        pytest.fail("an experiment ran again")

    monkeypatch.setattr(Reproduction, "_one_run", never)
    before = contents(smoke.folder)
    result = lowdyn("reproduce", *REAL, "--scale", "smoke", "--out", smoke.folder, "--strict")
    assert result.exit_code == 0
    after = contents(smoke.folder)
    changed = [name for name in before if after[name] != before[name]]
    assert after.keys() == before.keys()
    assert changed in ([], ["index.html"])


def test_report_writes_the_page_anew(smoke):
    page = smoke.folder / "index.html"
    page.unlink()
    assert lowdyn("report", smoke.folder).stdout == f"report: {page}\n"
    assert page.exists()


def test_killed_at_any_moment_it_ends_as_if_it_had_never_been(smoke, folder):
    """SIGKILL as soon as the first run is there, then at random moments of its work, then never."""
    moments, early = random.Random(20), True
    for _ in range(3):
        process = start(folder)
        done = len(list(folder.glob("*/runs/*.nc")))
        while process.poll() is None and len(list(folder.glob("*/runs/*.nc"))) == done:
            time.sleep(0.002)
        if not early:
            time.sleep(moments.uniform(0.0, 0.4))
        early = False
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in (*folder.glob("*.json"), *folder.glob("*/figure.json")):
            read(path)
        for path in folder.rglob("*.nc"):
            trajectory.load(path)
    process = start(folder)
    assert process.communicate(timeout=100)[1] == ""
    assert process.returncode == 0
    assert without_times(read(folder / "results.json")) == without_times(smoke.results)
    assert contents(folder).keys() >= contents(smoke.folder).keys()
