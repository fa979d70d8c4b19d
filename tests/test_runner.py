"""Runs into a folder: what is written there, and which folders may be written to.

Claims and experiments here are tiny fakes; real ones are run by test_cli_real.py.
"""

import plotly.io
import pytest

from lowdyn import trajectory
from lowdyn.experiments.experiment import each_cell
from lowdyn.runner import Folder, FolderError, Reproduction
from tests.fake_claims import FIXED, HALVING, Runs, claim, contents, experiment, read, reproduce

KEYS = {
    *("id", "title", "claim", "source", "published", "deviation", "scale", "holds", "reason", "checks", "experiments"),
    *("settings", "seeds", "seconds", "versions", "machine", "data", "key", "figure"),
    *("part", "difference", "scale_note", "source_sha256", "times"),
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
