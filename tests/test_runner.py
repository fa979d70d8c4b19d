"""Runs into a folder: what is complete is kept, what is killed is taken up again, what fails says why.

Claims and experiments here are tiny fakes. Run as a script, this file dies at every write in turn (see the end).
"""

import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest
import xarray as xr

from lowdyn import runner, trajectory
from lowdyn.claims.claim import Check, at_most
from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import SCALES, Experiment, Plan, each_cell
from lowdyn.files import replace_atomically
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Factorization
from lowdyn.runner import Folder, FolderError, Reproduction

KEYS = {
    *("id", "title", "claim", "source", "published", "deviation", "scale", "holds", "reason", "checks", "experiments"),
    *("settings", "seeds", "seconds", "versions", "machine", "data", "key", "figure"),
}
HALVING, FIXED = {"steps": 4, "factor": 0.5}, {"steps": 3, "factor": 1.0}
KEYS |= {"part", "scale_note", "source_sha256"}


class Runs:
    """A run of an experiment that remembers its seeds; `fail` is raised by the run of that number, from 1."""

    __module__ = "lowdyn.linalg"  # whose source stands for the fake's own

    def __init__(self, fail=None):
        self.seeds, self.fail = [], fail or {}

    def __call__(self, *, steps, factor, generator, images=None):
        self.seeds.append(generator.initial_seed())
        if len(self.seeds) in self.fail:
            raise self.fail[len(self.seeds)]
        loss = np.random.default_rng(self.seeds[-1]).uniform(1, 2) * factor ** np.arange(steps)
        attrs = {"data": images.name, "used": images.used, "sha256": images.sha256} if images else {}
        return xr.Dataset({"loss": ("step", loss)}, coords={"step": np.arange(steps)}, attrs=attrs)


def experiment(run=None, name="halving", cells=(HALVING,), seeds=3, images=()):
    return Experiment(name, run or Runs(), dict.fromkeys(SCALES, Plan(cells, seeds)), images)


def check_last(datasets):
    (data,) = datasets.values()
    return [at_most("last loss", float(data["loss"].max("seed").isel(step=-1).min()), 0.5)]


def draw_lines(datasets):
    (data,) = datasets.values()
    return go.Figure([go.Scatter(y=cell["loss"].isel(seed=0).values) for _, cell in each_cell(data)])


def claim(name="C90", of=None, check=check_last, draw=draw_lines):
    texts = {
        "PART": "see",
        "SCALE_NOTE": "",
        "TITLE": "Halving",
        "CLAIM": "It halves.",
        "SOURCE": "A paper",
        "PUBLISHED": "0.5",
        "DEVIATION": "None.",
    }
    of = (experiment() if of is None else of,)
    return SimpleNamespace(ID=name, **texts, EXPERIMENTS=of, check=check, draw=draw, __name__="lowdyn.files")


def raising(error):
    def fail(*_):
        raise error

    return fail


def reproduce(folder, *claims, **options):
    """Judge claims in a folder, as the command does; return their entries."""
    with Folder.open(folder) as opened:
        run = Reproduction(opened, **{"scale": "smoke", **options})
        return [run.judge(one) for one in claims]


def read(path):
    """Strict JSON: no NaN, no infinity."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def contents(folder):
    """Every file of a folder but the lock: name -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def without_times(results):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in results]


def assert_whole(folder):
    """Whatever is there under its own name can be read to its end."""
    for path in folder.rglob("*.json"):
        read(path)
    for path in folder.rglob("*.nc"):
        trajectory.load(path)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("LOWDYN_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


# --- what is written ------------------------------------------------------------------------------------------


def test_a_result_says_all(folder):
    run = Runs()
    (entry,) = reproduce(folder, claim(of=experiment(run, cells=(HALVING, FIXED), seeds=2)), seed=5)
    assert read(folder / "results.json") == [entry]
    assert entry.keys() == KEYS
    assert run.seeds == [5, 6, 5, 6]
    expected = {"id": "C90", "claim": "It halves.", "source": "A paper", "scale": "smoke", "holds": True}
    expected |= {"reason": None, "experiments": ["halving"], "settings": {"halving": [HALVING, FIXED]}}
    expected |= {"seeds": [5, 6], "data": None}
    assert {name: entry[name] for name in expected} == expected
    (check,) = entry["checks"]
    assert check.keys() == {"text", "measured", "expected", "tolerance", "holds"}
    assert check["holds"] is True
    assert entry["seconds"] > 0
    assert {"lowdyn", "torch", "numpy"} <= entry["versions"].keys()
    assert {"system", "cores", "threads"} <= entry["machine"].keys()


def test_data_and_picture_lie_beside_the_result(folder):
    reproduce(folder, claim(of=experiment(cells=(HALVING, FIXED))))
    data = trajectory.load(folder / "halving" / "trajectory.nc")
    assert data["loss"].sizes == {"cell": 2, "seed": 3, "step": 4}
    assert [settings for settings, _ in each_cell(data)] == [HALVING, FIXED]
    figure = plotly.io.from_json((folder / "C90" / "figure.json").read_text(encoding="utf-8"))
    assert len(figure.data) == 2
    assert len(list((folder / "halving" / "runs").iterdir())) == 6
    assert not [name for name in contents(folder) if name.endswith(".tmp")]


def test_what_does_not_hold_says_so_in_words(folder):
    (entry,) = reproduce(folder, claim(of=experiment(cells=(FIXED,))))
    assert entry["holds"] is False
    assert entry["reason"].startswith("last loss: 1.")
    assert entry["reason"].endswith("expected ≤ 0.5")


def test_results_stand_in_the_order_of_the_lecture_and_stay(folder):
    reproduce(folder, claim("C10"), claim("C9"))
    before = read(folder / "results.json")
    reproduce(folder, claim("C2"), claim("C91"))
    after = read(folder / "results.json")
    assert [entry["id"] for entry in after] == ["C2", "C9", "C10", "C91"]
    assert after[1:3] == before


def test_progress_is_told(folder):
    told = []
    with Folder.open(folder) as opened:
        Reproduction(opened, "smoke").judge(claim(), lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_claims_share_runs(folder):
    shared = experiment()
    entries = reproduce(folder, claim("C1", shared), claim("C2", shared))
    assert [entry["holds"] for entry in entries] == [True, True]
    assert len(shared.run.seeds) == 3


# --- what is complete is not run again ------------------------------------------------------------------------


def test_a_second_run_runs_nothing_and_writes_nothing(folder):
    first = reproduce(folder, claim(), claim("C91", experiment(name="other")))
    before = contents(folder)
    idle = Runs()

    never = raising(AssertionError("judged again"))
    again = reproduce(
        folder, claim(of=experiment(idle), check=never), claim("C91", experiment(idle, "other"), draw=never)
    )
    assert again == first
    assert idle.seeds == []
    assert contents(folder) == before


def runs_after(folder, **changes):
    """Seeds that a second reproduction runs after `changes`."""
    run = Runs()
    options = {name: changes.pop(name) for name in ("seed", "data_dir") if name in changes}
    reproduce(folder, claim(of=experiment(run, **changes)), **options)
    return run.seeds


def test_another_seed_runs_what_is_new(folder):
    reproduce(folder, claim())
    assert runs_after(folder, seed=1) == [3]
    assert runs_after(folder, seed=1) == []
    assert read(folder / "results.json")[0]["seeds"] == [1, 2, 3]
    assert runs_after(folder, seed=0) == []
    assert read(folder / "results.json")[0]["seeds"] == [0, 1, 2]


def test_other_settings_run_again(folder):
    reproduce(folder, claim())
    assert runs_after(folder, cells=(HALVING, {**HALVING, "factor": 0.25})) == [0, 1, 2]
    assert runs_after(folder, cells=({**HALVING, "factor": 0.25},)) == []
    assert runs_after(folder, seeds=4) == [3]


@pytest.mark.parametrize("package", ["lowdyn", "torch", "numpy"])
def test_other_versions_run_again(folder, monkeypatch, package):
    reproduce(folder, claim())
    monkeypatch.setattr(runner, "versions", lambda versions=runner.versions: {**versions(), package: "99.0"})
    assert runs_after(folder) == [0, 1, 2]
    assert read(folder / "results.json")[0]["versions"][package] == "99.0"
    assert runs_after(folder) == []


def test_another_source_of_the_experiment_runs_again(folder, monkeypatch):
    reproduce(folder, claim())
    digests = {"lowdyn.linalg": "changed"}
    monkeypatch.setattr(
        runner, "source_digest", lambda name, before=runner.source_digest: digests.get(name, before(name))
    )
    assert runs_after(folder) == [0, 1, 2]


def test_another_source_of_the_claim_judges_again_and_runs_nothing(folder, monkeypatch):
    reproduce(folder, claim())
    digests = {"lowdyn.files": "changed"}
    monkeypatch.setattr(
        runner, "source_digest", lambda name, before=runner.source_digest: digests.get(name, before(name))
    )
    idle = Runs()
    (entry,) = reproduce(folder, claim(of=experiment(idle), check=lambda _: [Check("new", 1.0, 2.0, None, False)]))
    assert entry["reason"] == "new: 1, expected 2.0"
    assert idle.seeds == []


def test_a_result_names_the_scale_that_was_asked_for(folder):
    """Plans of two scales may be the same: the runs are shared, the result is not."""
    reproduce(folder, claim(), scale="quick")
    idle = Runs()
    (entry,) = reproduce(folder, claim(of=experiment(idle)), scale="paper")
    assert entry["scale"] == "paper"
    assert idle.seeds == []


# --- taken up again -------------------------------------------------------------------------------------------


def test_single_runs_are_kept(folder):
    with pytest.raises(KeyboardInterrupt):
        reproduce(folder, claim(of=experiment(Runs({3: KeyboardInterrupt()}))))
    assert runs_after(folder) == [2]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(("cut", "again"), [("halving/trajectory.nc", []), ("**/*.nc", [0, 1, 2])])
def test_a_file_cut_short_is_made_again(folder, cut, again, share):
    (first,) = reproduce(folder, claim())
    names = contents(folder).keys()
    for path in folder.glob(cut):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert runs_after(folder) == again
    assert without_times(read(folder / "results.json")) == without_times([first])
    assert contents(folder).keys() == names
    assert_whole(folder)


@pytest.mark.parametrize("lost", ["halving/trajectory.nc", "C90/figure.json", "results.json"])
def test_a_file_that_is_gone_is_made_again_from_the_runs(folder, lost):
    (first,) = reproduce(folder, claim())
    before = contents(folder)
    (folder / lost).unlink()
    assert runs_after(folder) == []
    assert contents(folder).keys() == before.keys()
    assert read(folder / "results.json") == [first]
    assert (folder / "C90" / "figure.json").read_bytes() == before["C90/figure.json"]


def test_a_picture_is_of_its_result(folder, monkeypatch):
    """Killed between the picture of seed 1 and its result, then run with seed 0 again: the picture is seed 0's."""
    reproduce(folder, claim(), seed=0)
    picture = (folder / "C90" / "figure.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "save_result", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            reproduce(folder, claim(), seed=1)
    reproduce(folder, claim(), seed=0)
    assert (folder / "C90" / "figure.json").read_bytes() == picture


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders 1, 2, …: the process that wrote into folder n was killed at its n-th write; the last one ended."""
    place = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, __file__, place], check=True, timeout=100)
    return sorted(place.iterdir(), key=lambda path: int(path.name))


def two_claims():
    return claim("C1", experiment(name="one", seeds=2)), claim(
        "C2", experiment(name="two", cells=(HALVING, FIXED), seeds=1)
    )


def test_killed_at_every_write_it_ends_as_if_it_had_never_been(killed):
    *stopped, ended = killed
    assert len(stopped) == 11  # the marker; of each claim two runs, one trajectory, one picture, one result
    assert_whole(ended)
    expected = without_times(read(ended / "results.json"))
    assert [entry["id"] for entry in expected] == ["C1", "C2"]
    for folder in stopped:
        assert_whole(folder)
        reproduce(folder, *two_claims())
        assert without_times(read(folder / "results.json")) == expected
        for name in ("C1/figure.json", "C2/figure.json"):
            assert (folder / name).read_bytes() == (ended / name).read_bytes()
        assert contents(folder).keys() >= contents(ended).keys()


def test_killed_again_and_again_it_goes_on(folder):
    """Each attempt gets one run further: no run that was complete is made twice."""
    seen = []
    for _ in range(4):
        run = Runs({2: KeyboardInterrupt()})
        try:
            reproduce(folder, claim(of=experiment(run, seeds=4)))
        except KeyboardInterrupt:
            seen.append(run.seeds[0])
    assert seen == [0, 1, 2]
    assert read(folder / "results.json")[0]["seeds"] == [0, 1, 2, 3]


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    replace_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", raising(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        replace_atomically(path, b"new")
    assert [one.read_bytes() for one in path.parent.iterdir()] == [b"old"]


# --- what goes wrong ------------------------------------------------------------------------------------------


def diverge(*, steps, factor, generator):
    network = DeepLinearNetwork((4, 4, 4), 1.0, generator=generator)
    return gradient_descent(network, Factorization(np.eye(4)), Descent(lr=1e6), 500)


diverge.__module__ = "lowdyn.linalg"


def test_a_run_that_diverges_names_step_and_rates_and_the_others_go_on(folder):
    bad, good = reproduce(folder, claim("C1", experiment(diverge, "bad")), claim("C2"))
    assert bad["holds"] is None
    assert bad["reason"].startswith("error: ")
    assert re.search(r"step \d+ with lr 1e\+06; the largest stable rate here is about 16;", bad["reason"])
    assert good["holds"] is True
    assert [entry["id"] for entry in read(folder / "results.json")] == ["C1", "C2"]


@pytest.mark.parametrize(
    "broken",
    [
        claim("C1", experiment(Runs({1: RuntimeError("out of luck")}), "bad")),
        claim("C1", check=raising(RuntimeError("out of luck"))),
        claim("C1", draw=raising(RuntimeError("out of luck"))),
    ],
    ids=["run", "check", "draw"],
)
def test_an_error_is_told_and_the_others_go_on(folder, broken):
    bad, good = reproduce(folder, broken, claim("C2"))
    assert (bad["holds"], bad["reason"]) == (None, "error: RuntimeError: out of luck")
    assert bad["checks"] == []
    assert good["holds"] is True
    assert read(folder / "results.json") == [bad, good]


@pytest.mark.parametrize(
    "check",
    [
        Check("x", np.float32(1.0), 2.0, None, True),
        Check("x", 1.0, 2.0, None, np.bool_(True)),
        Check("x", 1.0, float("nan"), None, True),
        Check("x", 1.0, 2.0, float("inf"), True),
        Check("x \udcff", 1.0, 2.0, None, True),
    ],
    ids=["float32", "bool_", "NaN", "infinity", "surrogate"],
)
def test_a_check_that_is_no_json_costs_its_claim_alone(folder, check):
    """Written as plain values or told as an error; never a results.json that cannot be read, nor the end of it."""
    bad, good = reproduce(folder, claim("C1", check=lambda _: [check]), claim("C2"))
    assert bad["holds"] is True or bad["reason"].startswith("error: ")
    assert good["holds"] is True
    assert [entry["id"] for entry in read(folder / "results.json")] == ["C1", "C2"]


def test_a_measurement_that_is_not_finite_does_not_hold_and_can_be_written(folder):
    (entry,) = reproduce(
        folder, claim(check=lambda _: [at_most("x", float("inf"), 1.0), at_most("y", float("nan"), 1)])
    )
    assert entry["holds"] is False
    assert [check["measured"] for check in read(folder / "results.json")[0]["checks"]] == ["inf", "nan"]


def test_an_error_is_not_kept(folder):
    reproduce(folder, claim(of=experiment(Runs({2: RuntimeError("once")}))))
    assert runs_after(folder) == [1, 2]
    assert read(folder / "results.json")[0]["holds"] is True


def test_an_error_has_no_picture(folder):
    """The picture of an earlier seed beside the error of this one would be taken for its own."""
    reproduce(folder, claim(), seed=0)
    (entry,) = reproduce(folder, claim(of=experiment(Runs({1: RuntimeError("now")}))), seed=9)
    assert entry["reason"] == "error: RuntimeError: now"
    assert not (folder / "C90" / "figure.json").exists()


# --- data sets ------------------------------------------------------------------------------------------------


def write_mnist(folder, count=6):
    """A tiny data set in the format of MNIST, in both splits."""
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    labels = np.arange(count) % 10
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28))
    for split in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
            (folder / "mnist" / f"{split}-{kind}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    return folder


def on_images(run=None, names=("mnist",)):
    return claim("C1", experiment(run, "on-images", seeds=1, images=names))


def test_data_that_are_missing_are_no_error(folder, tmp_path):
    missing, good = reproduce(folder, on_images(), claim("C2"), data_dir=tmp_path)
    assert missing["holds"] is None
    assert missing["reason"].startswith("mnist (train): no train-images-idx3-ubyte.gz")
    assert str(tmp_path / "mnist") in missing["reason"]
    assert "https://" in missing["reason"]
    assert len(missing["reason"].splitlines()) == 1
    assert good["holds"] is True


def test_without_a_data_folder_the_reason_says_how_to_name_one(folder):
    (missing,) = reproduce(folder, on_images())
    assert missing["holds"] is None
    assert "--data-dir" in missing["reason"]
    assert "LOWDYN_DATA" in missing["reason"]
    assert len(missing["reason"].splitlines()) == 1


def test_data_that_come_later_are_used(folder, tmp_path):
    reproduce(folder, on_images(), data_dir=tmp_path)
    (entry,) = reproduce(folder, on_images(), data_dir=write_mnist(tmp_path))
    assert entry["holds"] is True
    assert entry["data"].keys() == {"name", "used", "sha256"}
    assert (entry["data"]["name"], entry["data"]["used"]) == ("mnist", "6 of 60 000 images")


def test_other_data_run_again(folder, tmp_path):
    (first,) = reproduce(folder, on_images(), data_dir=write_mnist(tmp_path / "a"))
    same, other = Runs(), Runs()
    reproduce(folder, on_images(same), data_dir=write_mnist(tmp_path / "b"))
    (second,) = reproduce(folder, on_images(other), data_dir=write_mnist(tmp_path / "b", count=7))
    assert (same.seeds, other.seeds) == ([], [0])
    assert first["data"]["sha256"] != second["data"]["sha256"]


def test_sets_that_go_together_are_given_together(folder, tmp_path):
    given = []

    class Both(Runs):
        __module__ = Runs.__module__

        def __call__(self, *, data, **settings):
            given.append([(one.name, one.split) for one in data])
            return super().__call__(images=data[-1], **settings)

    def reproduced(choices, plan=(), **options):
        plans = dict.fromkeys(SCALES, Plan((HALVING,), 1, data=plan))
        one = claim("C1", Experiment("together", Both(), plans, data=choices))
        return reproduce(folder, one, **options)[0]

    choices = (("mnist/train", "mnist/test"), ("digits", "digits/test"))
    assert reproduced(choices)["data"]["name"] == "digits"
    assert reproduced(choices, data_dir=write_mnist(tmp_path))["data"]["name"] == "mnist"
    assert reproduced(choices, (("digits/test",),), data_dir=tmp_path)["data"]["name"] == "digits"
    missing = reproduced((("sts_benchmark/train", "sts_benchmark/dev"),), data_dir=tmp_path)
    assert (missing["holds"], missing["reason"][:21]) == (None, "sts_benchmark (train)")
    assert given == [
        [("digits", "train"), ("digits", "test")],
        [("mnist", "train"), ("mnist", "test")],
        [("digits", "test")],
    ]


def test_the_first_data_set_that_is_there_is_taken(folder, tmp_path):
    names = ("cifar10", "mnist", "digits")
    (entry,) = reproduce(folder, on_images(names=names))
    assert entry["data"]["name"] == "digits"
    (entry,) = reproduce(folder, on_images(names=names), data_dir=write_mnist(tmp_path))
    assert entry["data"]["name"] == "mnist"


def test_a_damaged_file_is_an_error(folder, tmp_path):
    path = write_mnist(tmp_path) / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    bad, good = reproduce(folder, on_images(), claim("C2"), data_dir=tmp_path)
    assert bad["holds"] is None
    assert bad["reason"].startswith(f"error: {path}: ")
    assert len(bad["reason"].splitlines()) == 1
    assert good["holds"] is True


# --- the folder -----------------------------------------------------------------------------------------------


def test_a_foreign_folder_is_not_touched(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match=r"out holds files that are not lowdyn's; pass an empty or a new folder"):
        reproduce(folder, claim())
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_will_do(folder):
    folder.mkdir()
    assert reproduce(folder, claim())[0]["holds"] is True


@pytest.mark.parametrize("below", [".", "below", "far/below"])
def test_a_file_is_no_folder(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match=r"file.* pass another"):
        reproduce(tmp_path / "file" / below, claim())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_use_is_left_alone(folder):
    reproduce(folder, claim())
    before = {path: path.stat() for path in folder.rglob("*")}
    with Folder.open(folder), pytest.raises(FolderError, match="in use by another run"), Folder.open(folder):
        pass
    after = {path: path.stat() for path in folder.rglob("*")}
    assert {path.name for path in folder.rglob("*") if after[path].st_mtime_ns != before[path].st_mtime_ns} <= {".lock"}
    assert reproduce(folder, claim())[0]["holds"] is True


# --- a process that is killed ---------------------------------------------------------------------------------


def die_at_write(number, folder):
    """Reproduce in a process of its own that is killed with half of its `number`-th file on the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def fsync(handle):
        nonlocal count
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return  # a folder, synced after its file
        count += 1
        if count == number:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    reproduce(folder, *two_claims())
    os._exit(0)


if __name__ == "__main__":
    place, written = Path(sys.argv[1]), 1
    while die_at_write(written, place / str(written)) == -signal.SIGKILL:
        written += 1
