"""Runs into a folder: what is complete is kept, what is killed is taken up again, what fails says why.

Claims and experiments here are tiny fakes; real ones are run by test_cli.py.
"""

import hashlib
import os
import re
import struct
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest

from lowdyn import provenance, trajectory
from lowdyn.claims.claim import Check, at_most
from lowdyn.data import load_set
from lowdyn.dynamics import Descent, gradient_descent
from lowdyn.experiments.experiment import SCALES, Experiment, Plan, each_cell
from lowdyn.files import replace_atomically
from lowdyn.networks import DeepLinearNetwork
from lowdyn.problems import Factorization
from lowdyn.runner import Folder, FolderError, Reproduction, reproduction, runs
from lowdyn.runner.origin import data_of
from tests.fake_claims import (
    FIXED,
    HALVING,
    Runs,
    assert_whole,
    claim,
    contents,
    experiment,
    raising,
    read,
    reproduce,
    without_times,
)

KEYS = {
    *("id", "title", "claim", "source", "published", "deviation", "scale", "holds", "reason", "checks", "experiments"),
    *("settings", "seeds", "seconds", "versions", "machine", "data", "key", "figure"),
    *("part", "scale_note", "source_sha256", "times"),
}


pytestmark = pytest.mark.usefixtures("no_data_folder")


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
    assert entry["times"] == {"halving": entry["seconds"]}
    assert {"lowdyn", "torch", "numpy"} <= entry["versions"].keys()
    assert {"system", "cores", "threads"} <= entry["machine"].keys()


def test_data_and_picture_lie_beside_the_result(folder):
    reproduce(folder, claim(of=experiment(cells=(HALVING, FIXED))))
    data = trajectory.load(folder / "halving" / "trajectory.nc")
    assert data["loss"].sizes == {"cell": 2, "seed": 3, "step": 4}
    assert [settings for settings, _ in each_cell(data)] == [HALVING, FIXED]
    figure = plotly.io.from_json((folder / "C90" / "figure.json").read_text(encoding="utf-8"))
    assert len(figure.data) == 2
    assert len(list((folder / "halving" / "runs").glob("*.nc"))) == 6
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


def replace_everywhere(monkeypatch, name, function):
    """Let a function of provenance be another one, wherever the runner calls it."""
    for module in (provenance, runs, reproduction):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, function)


@pytest.mark.parametrize("package", ["lowdyn", "torch", "numpy"])
def test_other_versions_run_again(folder, monkeypatch, package):
    reproduce(folder, claim())
    replace_everywhere(monkeypatch, "versions", lambda versions=provenance.versions: {**versions(), package: "99.0"})
    assert runs_after(folder) == [0, 1, 2]
    assert read(folder / "results.json")[0]["versions"][package] == "99.0"
    assert runs_after(folder) == []


def test_versions_of_a_library_count_for_those_that_import_it(folder, monkeypatch):
    """The fake's source stands in lowdyn.linalg, then in a module that imports accelerate, but not peft."""
    reproduce(folder, claim())
    changed = {"accelerate": "99.0", "peft": "99.0"}
    before = provenance.versions
    replace_everywhere(monkeypatch, "versions", lambda: {**before(), **changed})
    assert runs_after(folder) == []
    monkeypatch.setattr(Runs, "__module__", "lowdyn.training")
    assert runs_after(folder) == [0, 1, 2]
    del changed["peft"]
    assert runs_after(folder) == []
    changed["accelerate"] = "99.1"
    assert runs_after(folder) == [0, 1, 2]


def test_another_source_of_the_experiment_runs_again(folder, monkeypatch):
    reproduce(folder, claim())
    digests = {"lowdyn.linalg": "changed"}
    before = provenance.source_digest
    replace_everywhere(monkeypatch, "source_digest", lambda name: digests.get(name, before(name)))
    assert runs_after(folder) == [0, 1, 2]


def test_another_source_of_the_claim_judges_again_and_runs_nothing(folder, monkeypatch):
    reproduce(folder, claim())
    digests = {"lowdyn.files": "changed"}
    before = provenance.source_digest
    replace_everywhere(monkeypatch, "source_digest", lambda name: digests.get(name, before(name)))
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


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("damaged", "again"), [("halving/trajectory.nc", []), ("**/*.nc", [0, 1, 2])])
def test_a_file_with_one_flipped_bit_is_made_again(folder, damaged, again, place):
    """Damage that leaves a file of the same size, which may well be read to its end."""
    (first,) = reproduce(folder, claim())
    for path in folder.glob(damaged):
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)
    assert runs_after(folder) == again
    assert without_times(read(folder / "results.json")) == without_times([first])
    assert runs_after(folder) == []


def test_one_flipped_bit_costs_one_run(folder):
    reproduce(folder, claim())
    (folder / "halving" / "trajectory.nc").unlink()
    path = sorted(folder.glob("halving/runs/*.nc"))[1]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert len(runs_after(folder)) == 1


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"no digest  x.nc\n"])
def test_a_run_without_its_checksum_is_made_again(folder, content):
    """So are those of folders from before there were checksums."""
    reproduce(folder, claim())
    for path in folder.rglob("*.sha256"):
        path.unlink() if content is None else path.write_bytes(content)
    assert runs_after(folder) == [0, 1, 2]


def test_checksums_are_those_that_sha256sum_reads(folder):
    reproduce(folder, claim())
    path = folder / "halving" / "trajectory.nc"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name("trajectory.nc.sha256").read_text() == f"{digest}  trajectory.nc\n"


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


def test_a_claim_names_the_data_of_all_its_experiments(folder, tmp_path):
    """C23 has one experiment for each of two sets; C2's checkpoint is given to runs that name only their images."""
    one = on_images(names=("digits",))
    two = experiment(name="on-mnist", seeds=1, images=("mnist",))
    both = SimpleNamespace(**{**vars(one), "EXPERIMENTS": (*one.EXPERIMENTS, two, experiment(), two)})
    both.check = lambda datasets: [at_most("last loss", 0.0, 0.5)]
    both.draw = lambda datasets: go.Figure()
    (entry,) = reproduce(folder, both, data_dir=write_mnist(tmp_path))
    digits, mnist = load_set("digits"), load_set("mnist", tmp_path)
    assert entry["data"] == {
        "name": "digits + mnist",
        "used": f"{digits.used} + 6 of 60 000 images",
        "sha256": f"{digits.sha256} + {mnist.sha256}",
    }
    assert entry["times"].keys() == {"on-images", "on-mnist", "halving"}


def test_a_set_that_the_runs_do_not_name_stands_beside_those_they_do():
    checkpoint = SimpleNamespace(name="vit_b_16", used="all weights but the head", sha256="0f")
    images = SimpleNamespace(name="cifar10", used="50 000 images", sha256="ff")
    attrs = {"data": "cifar10", "used": "4 000 of 50 000 images", "sha256": "aa"}
    assert data_of(attrs, (images, checkpoint)) == {
        "name": "cifar10 + vit_b_16",
        "used": "4 000 of 50 000 images + all weights but the head",
        "sha256": "aa + 0f",
    }
    assert data_of({}, (images,)) == vars(images)
    assert data_of({}, ()) is None


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
