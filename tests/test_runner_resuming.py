"""Runs taken up again: what was killed goes on, and files that are cut short, flipped or gone are made again."""

import hashlib
import os

import pytest

from lowdyn.files import replace_atomically
from lowdyn.runner import Folder
from tests.fake_claims import (
    Runs,
    assert_whole,
    claim,
    contents,
    experiment,
    raising,
    read,
    reproduce,
    runs_after,
    without_times,
)

pytestmark = pytest.mark.usefixtures("no_data_folder")


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
