"""Bad usage of the command: one clear line, status 2, and nothing that was there is touched."""

import io
import os
import sys
from pathlib import Path

import pytest

from lowdyn import cli
from lowdyn.runner import Folder
from tests.commands import lowdyn, refused
from tests.fake_claims import contents, read

pytestmark = pytest.mark.usefixtures("no_data_folder")


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
