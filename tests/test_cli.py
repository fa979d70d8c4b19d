"""The command: what it prints, its exit status, and one smoke reproduction of real claims, killed and not."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest
import xarray as xr
from typer.testing import CliRunner

from lowdyn import __version__, cli, trajectory
from lowdyn.claims import claim as claims
from lowdyn.claims.claim import all_claims, at_most
from lowdyn.experiments.experiment import SCALES, Experiment, Plan
from lowdyn.report.measured import read_measured
from lowdyn.runner import Folder, Reproduction

REAL = ("C4", "C20")  # the two fastest: seven runs in half a second


pytestmark = pytest.mark.usefixtures("no_data_folder")


def lowdyn(*arguments):
    """Run the command in this process; whatever it raises besides its exit status is an error of the test."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def read(path):
    """Strict JSON: no NaN, no infinity."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def contents(folder):
    """Every file of a folder but the lock: name -> bytes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def without_times(results):
    return [{name: value for name, value in entry.items() if name not in ("seconds", "times")} for entry in results]


# --- four fake claims, one for each way to end ----------------------------------------------------------------


def constant(*, value, generator, images=None):
    return xr.Dataset({"x": ("step", np.full(2, value))}, coords={"step": [0, 1]})


def fail(*, value, generator):
    raise RuntimeError("out of luck")


constant.__module__ = fail.__module__ = "lowdyn.linalg"  # whose source stands for the fakes' own


def fake(name, title, run=constant, limit=1.0, images=()):
    experiment = Experiment(name.lower(), run, dict.fromkeys(SCALES, Plan(({"value": 1.0},))), images)

    def check(datasets):
        return [at_most("value", float(datasets[experiment.name]["x"].max()), limit)]

    texts = dict.fromkeys(("PART", "CLAIM", "SOURCE", "PUBLISHED", "DEVIATION", "SCALE_NOTE"), "Nothing.")
    shape = {"EXPERIMENTS": (experiment,), "check": check, "draw": lambda _: go.Figure(), "__name__": "lowdyn.files"}
    return SimpleNamespace(ID=name, TITLE=title, **texts, **shape)


@pytest.fixture
def fakes(monkeypatch):
    every = (
        fake("C1", "True"),
        fake("C2", "Broken", run=fail),
        fake("C3", "False", limit=0.5),
        fake("C10", "Without data", images=("mnist",)),
    )
    monkeypatch.setattr(claims, "all_claims", lambda: {one.ID: one for one in every})


@pytest.mark.parametrize(
    ("arguments", "status", "verdicts"),
    [
        (["C1"], 0, ["C1   holds"]),
        (["C3"], 0, ["C3   does not hold"]),
        (["C10"], 0, ["C10  cannot"]),
        (["C2"], 1, ["C2   error"]),
        (["C1", "--strict"], 0, ["C1   holds"]),
        (["C3", "--strict"], 1, ["C3   does not hold"]),
        (["C10", "--strict"], 0, ["C10  cannot"]),
        (["c3", "C1", "C1"], 0, ["C1   holds", "C3   does not hold"]),
        ([], 1, ["C1   holds", "C2   error", "C3   does not hold", "C10  cannot"]),
    ],
)
def test_exit_status_and_verdicts(fakes, folder, arguments, status, verdicts):
    for _ in range(2):  # the second time from what is complete
        result = lowdyn("reproduce", *arguments, "--out", folder)
        assert result.exit_code == status
        printed = [line for line in result.stdout.splitlines() if re.match(r"C\d", line)]
        assert [line[: len(verdict)] for line, verdict in zip(printed, verdicts, strict=True)] == verdicts
        assert result.stdout.endswith(f"report: {folder / 'index.html'}\n")
        assert result.stderr == ""
    assert [entry["id"] for entry in read(folder / "results.json")] == [line.split()[0] for line in verdicts]
    assert (folder / "index.html").exists()


def test_reasons_are_printed_below_the_verdict(fakes, folder):
    lines = lowdyn("reproduce", "--out", folder).stdout.splitlines()
    for title, reason in {
        "Broken": "     RuntimeError: out of luck",
        "False": "     value: 1, expected ≤ 0.5",
        "Without data": "     mnist (train): no data folder; pass folder= (on the command line --data-dir)",
    }.items():
        (place,) = (number for number, line in enumerate(lines) if title in line)
        assert lines[place + 1].startswith(reason)


# --- bad usage ------------------------------------------------------------------------------------------------


def refused(*arguments):
    """The one clear line on stderr of a command that ends with status 2."""
    result = lowdyn(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    *usage, line = result.stderr.splitlines()
    assert usage == [] or usage[0].startswith("Usage: ")  # what the parser refuses comes with the usage
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["C99"], "unknown claim C99; known are C1, C2, C3, C10"),
        (["C1", "c98", "C99"], "unknown claim C98, C99; known are"),
        ([""], "unknown claim"),
        (["--scale", "large"], "'large' is not one of 'smoke', 'quick', 'paper'"),
        (["--seed", "-1"], "'--seed': Input should be greater than or equal to 0"),
        (["--seed", "one"], "'--seed'"),
        (["--seed", str(2**64)], "'--seed'"),
        (["--data-dir", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["--download"], "--download needs --data-dir"),
        (["--jobs", "0"], "'--jobs'"),
        (["--jobs", "2", "--cluster", "tcp://127.0.0.1:1"], "--jobs is for this machine"),
        (["--sacle", "quick"], "No such option: --sacle"),
    ],
)
def test_bad_arguments(fakes, folder, arguments, message):
    assert message in refused("reproduce", *arguments, "--out", folder)
    assert not folder.exists()


def test_a_data_folder_that_is_a_file(fakes, folder, tmp_path):
    (tmp_path / "mnist.gz").write_text("")
    assert str(tmp_path / "mnist.gz") in refused("reproduce", "--data-dir", tmp_path / "mnist.gz", "--out", folder)


def test_a_data_folder_from_the_environment(fakes, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOWDYN_DATA", str(tmp_path / "nowhere"))
    assert "nowhere" in refused("reproduce", "--out", folder)
    monkeypatch.setenv("LOWDYN_DATA", str(tmp_path))
    assert str(tmp_path / "mnist") in lowdyn("reproduce", "C10", "--out", folder).stdout


@pytest.mark.parametrize("below", [".", "below", "far/below"])
def test_a_file_as_folder(fakes, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    assert refused("reproduce", "--out", tmp_path / "file" / below).endswith("with --out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_cannot_be_written(fakes):
    assert "cannot write to /proc/lowdyn" in refused("reproduce", "--out", "/proc/lowdyn")


def test_a_foreign_folder(fakes, folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert "holds files that are not lowdyn's" in refused("reproduce", "--out", folder)
    assert contents(folder) == {"thesis.tex": b"years of work"}


def test_a_folder_in_use(fakes, folder):
    lowdyn("reproduce", "C1", "--out", folder)
    before = contents(folder)
    with Folder.open(folder):
        assert "is in use by another run" in refused("reproduce", "C3", "--out", folder)
    assert contents(folder) == before


BROKEN = {
    "half": b'[{"id": "C1", "cl',
    "empty": b"",
    "not text": b"\xff\xfe[]",
    "an object": b"{}",
    "null": b"null",
    "numbers": b"[1, 2]",
    "no id": b'[{"claim": "x"}]',
    "a foreign id": b'[{"id": "X", "claim": "", "scale": "quick", "holds": null, "checks": []}]',
    "a numeric id": b'[{"id": 5, "claim": "", "scale": "quick", "holds": null, "checks": []}]',
    "only an id": b'[{"id": "C5"}]',
    "wrong types": b'[{"id": "C5", "claim": "", "scale": "quick", "holds": "yes", "checks": []}]',
    "twice": b"[%s, %s]" % ((b'{"id": "C5", "claim": "", "scale": "quick", "holds": null, "checks": []}',) * 2),
    "not a number": b'[{"id": "C5", "claim": "", "scale": "quick", "holds": null, "checks": [], "more": NaN}]',
    "too deep": b"[" * 100_000,
    "a folder": None,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_results_that_cannot_be_read(fakes, folder, content):
    """Refused before anything runs: nothing of what may be somebody's only copy is overwritten."""
    lowdyn("reproduce", "C1", "--out", folder)
    (folder / "results.json").unlink()
    if content is None:
        (folder / "results.json").mkdir()
    else:
        (folder / "results.json").write_bytes(content)
    before = contents(folder)
    assert "results.json" in refused("reproduce", "C3", "--out", folder)
    assert contents(folder) == before


@pytest.mark.parametrize("content", [BROKEN["half"], BROKEN["only an id"], None], ids=["half", "only an id", "none"])
def test_a_report_needs_results(folder, content):
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_bytes(content)
    before = contents(folder)
    assert f"{folder / 'results.json'}: " in refused("report", folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_report_needs_a_folder(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / name) in refused("report", tmp_path / name)


def printed_by_main(monkeypatch, encoding, *arguments):
    """What the whole command, not only its parser, prints on a terminal of that encoding."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["lowdyn", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    terminal.flush()
    return terminal.buffer.getvalue().decode(encoding)


def test_a_terminal_without_greek(fakes, folder, monkeypatch):
    """What it cannot show costs a letter, not the run: the reason of C3 holds a ≤."""
    printed = printed_by_main(monkeypatch, "ascii", "reproduce", "C3", "--out", folder)
    assert "does not hold" in printed
    assert "report: " in printed


def test_a_folder_whose_name_is_no_text(fakes, folder, tmp_path, monkeypatch):
    """Names of files are bytes and need not be UTF-8; this one is in the reason of C10."""
    data = tmp_path / os.fsdecode(b"data\xff")
    data.mkdir()
    printed = printed_by_main(monkeypatch, "utf-8", "reproduce", "C10", "C1", "--out", folder, "--data-dir", data)
    assert "C10  cannot" in printed
    assert [entry["holds"] for entry in read(folder / "results.json")] == [True, None]


# --- what it offers -------------------------------------------------------------------------------------------


def test_list_names_every_claim():
    printed = lowdyn("list").stdout
    assert "\x1b" not in printed
    for name, claim in all_claims().items():
        assert re.search(rf"^{name} +{claim.PART} +{re.escape(claim.TITLE)} ", printed, re.MULTILINE)


def test_list_says_what_is_estimated_and_by_which_command():
    estimates = [name for name, runs in read_measured().items() if "paper" in runs and runs["paper"].holds is None]
    printed = lowdyn("list").stdout
    assert sorted(re.findall(r"^(C\d+) .*≈ [\d.]+ (?:s|min|h) *$", printed, re.MULTILINE)) == sorted(estimates)
    assert ("benchmarks/estimates.py" in printed) == bool(estimates)


def test_list_says_one_claim_in_full():
    claim = all_claims()["C14"]
    printed = lowdyn("list", "c14").stdout
    for text in (claim.TITLE, claim.CLAIM, claim.SOURCE, claim.PUBLISHED, claim.DEVIATION, claim.SCALE_NOTE):
        assert text in printed
    assert "C15" not in printed
    assert "unknown claim C99" in refused("list", "C99")


def test_list_does_not_load_torch():
    code = (
        "import sys; sys.argv = ['lowdyn', 'list']\nfrom lowdyn.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print([name for name in ('torch', 'xarray', 'lowdyn.claims.claim') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_names_every_option():
    offered = lowdyn("reproduce", "--help").stdout
    for option in (
        "--scale",
        "--out",
        "--seed",
        "--data-dir",
        "--download",
        "--strict",
        "--jobs",
        "--cluster",
        "[ids]...",
    ):
        assert option in offered
    assert "DIR" in lowdyn("report", "--help").stdout
    for command in ("reproduce", "list", "report"):
        assert command in lowdyn("--help").stdout


def test_version():
    assert lowdyn("--version").stdout == f"lowdyn {__version__}\n"


def test_no_command_is_bad_usage():
    assert lowdyn().exit_code == 2


# --- real claims ----------------------------------------------------------------------------------------------


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
