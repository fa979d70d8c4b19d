"""What is complete is not run again; what has other seeds, settings, versions or sources is."""

import pytest

from lowdyn import provenance
from lowdyn.claims.claim import Check
from lowdyn.runner import reproduction, runs
from tests.fake_claims import HALVING, Runs, claim, contents, experiment, raising, read, reproduce, runs_after

pytestmark = pytest.mark.usefixtures("no_data_folder")


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
